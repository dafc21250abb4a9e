"""Reference values of what has no weights: DPO losses, optimizer trajectories, schedules: tests/golden/training.json.

The DPO losses are TRL's own code: DPOTrainer._compute_loss runs on a model that returns given log-probabilities. TRL 1.16
has no label smoothing for "sigmoid" (it applies it in "robust" only), so that one case restates the formula of the
conservative DPO of TRL 0.x: -(1-e) logsigmoid(L) - e logsigmoid(-L). Its rpo_alpha is now spelled loss_type
["sigmoid", "sft"] with loss_weights [1, alpha]: "sft" is the mean over all chosen answer tokens of the batch.
"""

from collections import defaultdict
from types import SimpleNamespace

import torch
from torch.nn.functional import logsigmoid
from transformers import get_scheduler
from trl import DPOTrainer

from common import GOLDEN, write_json

PAIRS = {
    "chosen": [-12.5, -40.25, -7.0, -103.0, -55.5, -21.0],
    "rejected": [-20.0, -38.5, -7.25, -99.0, -140.0, -21.0],
    "ref_chosen": [-13.0, -40.25, -9.5, -90.0, -54.0, -30.0],
    "ref_rejected": [-18.0, -38.5, -6.0, -101.0, -95.0, -12.0],
    "chosen_tokens": [9, 31, 4, 80, 47, 12],
    "rejected_tokens": [14, 30, 4, 77, 102, 19],
}


def trl_loss(pairs, beta, loss_type, label_smoothing, rpo_alpha):
    """The batch loss as DPOTrainer computes it, from per-token log-probabilities (each sequence's spread evenly)."""
    counts = pairs["chosen_tokens"] + pairs["rejected_tokens"]
    sums = torch.cat([pairs["chosen"], pairs["rejected"]])
    mask = torch.zeros(len(counts), max(counts) + 2, dtype=torch.int64)
    for row, count in enumerate(counts):
        mask[row, 2:2 + count] = 1  # two prompt tokens
    log_probs = sums[:, None] / torch.tensor(counts, dtype=torch.float64)[:, None] * mask[:, 1:]
    rest = torch.zeros_like(log_probs)
    outputs = SimpleNamespace(log_probs=log_probs, entropy=rest, mean_logits=rest, is_top1=rest.bool())
    accelerator = SimpleNamespace(device="cpu", gather=lambda value: value, gather_for_metrics=lambda value: value)
    types, weights = [loss_type], [1.0]
    if rpo_alpha:
        types, weights = [loss_type, "sft"], [1.0, rpo_alpha]
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True), accelerator=accelerator, aux_loss_enabled=False, ld_alpha=None,
        precompute_ref_logps=True, f_divergence_type="reverse_kl", loss_types=types, loss_weights=weights, beta=beta,
        label_smoothing=label_smoothing, use_weighting=False, _metrics={"train": defaultdict(list)}, _total_train_tokens=0,
        _tp_size=1)
    inputs = {"input_ids": torch.zeros_like(mask), "attention_mask": torch.ones_like(mask), "completion_mask": mask,
              "ref_chosen_logps": pairs["ref_chosen"], "ref_rejected_logps": pairs["ref_rejected"]}
    loss = DPOTrainer._compute_loss(trainer, lambda **_: outputs, inputs, False)
    return loss, {key: value[-1] for key, value in trainer._metrics["train"].items()}


def smoothed_loss(pairs, beta, _loss_type, label_smoothing, _rpo_alpha):
    delta = beta * (pairs["chosen"] - pairs["rejected"] - pairs["ref_chosen"] + pairs["ref_rejected"])
    return (-(1 - label_smoothing) * logsigmoid(delta) - label_smoothing * logsigmoid(-delta)).mean(), {}


def dpo_case(loss_type, beta=0.1, label_smoothing=0.0, rpo_alpha=0.0):
    smooth = loss_type == "sigmoid" and label_smoothing
    function = smoothed_loss if smooth else trl_loss
    pick = lambda rows: {key: ([value[row] for row in rows] if key.endswith("tokens") else
                               torch.tensor([value[row] for row in rows], dtype=torch.float64, requires_grad=True))
                         for key, value in PAIRS.items()}
    losses = [function(pick([row]), beta, loss_type, label_smoothing, 0.0)[0].item() for row in range(len(PAIRS["chosen"]))]
    pairs = pick(range(len(PAIRS["chosen"])))
    loss, metrics = function(pairs, beta, loss_type, label_smoothing, rpo_alpha)
    loss.backward()
    case = {"loss_type": loss_type, "beta": beta, "label_smoothing": label_smoothing, "rpo_alpha": rpo_alpha,
            "source": "formula" if smooth else "trl", "losses": losses, "loss": loss.item(),
            "d_chosen": pairs["chosen"].grad.tolist(), "d_rejected": pairs["rejected"].grad.tolist()}
    if metrics:
        case["metrics"] = {key: metrics[key] for key in ("rewards/chosen", "rewards/rejected", "rewards/margins",
                                                         "rewards/accuracies", "logps/chosen", "logps/rejected")}
    return case


def dpo():
    cases = [dpo_case("sigmoid"), dpo_case("sigmoid", beta=0.5), dpo_case("sigmoid", label_smoothing=0.1),
             dpo_case("sigmoid", rpo_alpha=0.7), dpo_case("ipo"), dpo_case("ipo", beta=0.5), dpo_case("ipo", rpo_alpha=0.7),
             dpo_case("hinge"), dpo_case("hinge", beta=0.5), dpo_case("robust", label_smoothing=0.1),
             dpo_case("robust", beta=0.3, label_smoothing=0.25, rpo_alpha=1.0)]
    return {"about": "losses: per pair without the rpo term. loss: their mean + rpo_alpha * (-sum of chosen log-probs / chosen "
                     "tokens of the batch). d_*: gradient of loss by each sequence's summed log-prob, which is also the "
                     "gradient by each of its tokens. hinge's gradient is 0 where its loss is 0",
            "pairs": PAIRS, "cases": cases}


def optimizers():
    generator = torch.Generator().manual_seed(7)
    start = torch.randn(6, generator=generator, dtype=torch.float64)
    gradients = torch.randn(10, 6, generator=generator, dtype=torch.float64) * torch.tensor([1e-4, 0.01, 0.3, 1, 5, 0.0]).double()
    settings = [("adamw", torch.optim.AdamW, {"lr": 0.01, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}),
                ("adamw", torch.optim.AdamW, {"lr": 0.003, "betas": (0.9, 0.95), "eps": 1e-6, "weight_decay": 0.1}),
                ("sgd", torch.optim.SGD, {"lr": 0.1, "momentum": 0.0, "weight_decay": 0.0}),
                ("sgd", torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.0}),
                ("sgd", torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.05}),
                ("sgd", torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.05, "nesterov": True})]
    cases = []
    for name, kind, options in settings:
        weight = torch.nn.Parameter(start.clone())
        optimizer = kind([weight], **options)
        path = []
        for gradient in gradients:
            weight.grad = gradient.clone()
            optimizer.step()
            path.append(weight.tolist())
        cases.append({"type": name, **options, "after_each_step": path})
    return {"about": "torch.optim in float64. AdamW's decay is decoupled (w *= 1 - lr * weight_decay, before the update); "
                     "SGD's is added to the gradient, and its first momentum is the gradient itself",
            "start": start.tolist(), "gradients": gradients.tolist(), "cases": cases}


def schedules():
    cases = []
    for name, warmup, total in [("constant", 0, 8), ("constant", 3, 8), ("linear", 0, 8), ("linear", 3, 10), ("linear", 1, 1),
                                ("cosine", 0, 8), ("cosine", 3, 11), ("cosine", 5, 5)]:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2e-3)
        scheduler = get_scheduler("constant_with_warmup" if name == "constant" and warmup else name, optimizer,
                                  num_warmup_steps=warmup, num_training_steps=total)
        rates = []
        for _ in range(total):
            rates.append(scheduler.get_last_lr()[0])
            optimizer.step()
            scheduler.step()
        cases.append({"type": name, "warmup_steps": warmup, "total_steps": total, "learning_rate": 2e-3, "used": rates,
                      "after_last": scheduler.get_last_lr()[0]})
    return {"about": "transformers' schedules: used[i] is the learning rate of update i (from 0)", "cases": cases}


def main():
    torch.set_num_threads(1)
    write_json(GOLDEN / "training.json", {"dpo": dpo(), "optimizers": optimizers(), "schedules": schedules()}, digits=17)


if __name__ == "__main__":
    main()
