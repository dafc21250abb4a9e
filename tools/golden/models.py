"""Tiny random checkpoints of every architecture and option, each with logits and gradients: tests/golden/models/NAME/.

Options are chosen so that a mistake in one shows at the 48 tokens tested: windows and original lengths are shorter than
that, norms are not one, biases are not zero. Some folders also vary how they are stored: see STORED.
"""

import copy
import json
import shutil

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import (AutoModelForCausalLM, GPT2Config, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config)

from common import GOLDEN
from exact import exact, next_token_loss

OUT = GOLDEN / "models"
TOKENS, VOCABULARY = 48, 96
DOCUMENTS = (21, 40)
SHAPE = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "bos_token_id": 1, "eos_token_id": 2}


def llama(rope=None, **options):
    rope = {"rope_theta": 10000.0, "rope_type": "default", **(rope or {})}
    return LlamaConfig(**{**SHAPE, "tie_word_embeddings": False, **options}, rope_parameters=rope)


MODELS = {
    "llama": llama(),
    "llama-tied": llama(tie_word_embeddings=True),
    "llama-bias": llama(attention_bias=True, mlp_bias=True),
    "llama-headdim": llama(head_dim=12),
    "llama-linear": llama({"rope_type": "linear", "factor": 4.0}),
    "llama-dynamic": llama({"rope_type": "dynamic", "factor": 3.0, "rope_theta": 100.0}, max_position_embeddings=24),
    # theta 100 spreads the four frequencies over the ramp: kept, a third, two thirds, interpolated.
    "llama-yarn": llama({"rope_type": "yarn", "factor": 4.0, "rope_theta": 100.0, "beta_fast": 4.0, "beta_slow": 0.5,
                         "original_max_position_embeddings": 32}),
    # Wavelengths 6, 20, 63, 199: kept, smoothed, divided, divided.
    "llama-llama3": llama({"rope_type": "llama3", "factor": 8.0, "rope_theta": 100.0, "low_freq_factor": 1.0,
                           "high_freq_factor": 4.0, "original_max_position_embeddings": 32}),
    # 32 lies between the two documents' lengths: one uses the short factors, the other the long ones.
    "llama-longrope": llama({"rope_type": "longrope", "rope_theta": 100.0, "short_factor": [1.0, 1.1, 1.3, 1.4],
                             "long_factor": [1.2, 1.9, 2.8, 3.9], "factor": 4.0, "original_max_position_embeddings": 32}),
    "qwen2": Qwen2Config(**SHAPE, tie_word_embeddings=True, rope_parameters={"rope_theta": 1e6, "rope_type": "default"}),
    "qwen3": Qwen3Config(**SHAPE, head_dim=12, tie_word_embeddings=False,
                         rope_parameters={"rope_theta": 1e6, "rope_type": "default"}),
    "mistral": MistralConfig(**SHAPE, sliding_window=10, tie_word_embeddings=False,
                             rope_parameters={"rope_theta": 10000.0, "rope_type": "default"}),
    "gpt2": GPT2Config(vocab_size=VOCABULARY, n_positions=64, n_embd=32, n_layer=2, n_head=4, n_inner=40, bos_token_id=1,
                       eos_token_id=2, attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0),
}
PACKED = ("llama", "llama-dynamic", "llama-longrope", "qwen2", "qwen3", "mistral", "gpt2")
# How a folder is stored: the element type, and in how many files. The goldens are those of the stored (rounded) weights.
STORED = {"llama-tied": (torch.float32, True), "llama-bias": (torch.bfloat16, False), "llama-headdim": (torch.float16, False)}
# Configurations rewritten the way transformers 4 wrote them: rope_theta and rope_scaling at the top level.
OLD_CONFIG = ("llama", "llama-linear", "llama-llama3", "llama-yarn", "mistral")


def randomise(model, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            noise = torch.randn(weight.shape, generator=generator, dtype=torch.float32)
            if weight.dim() == 2:
                weight.copy_(noise * (0.35 if "emb" in name or "wte" in name or "lm_head" in name else 0.2))
            elif "norm" in name or ".ln_" in name:
                weight.copy_(noise * 0.2 + (0.0 if name.endswith("bias") else 1.0))
            else:
                weight.copy_(noise * 0.2)


def rewrite_config(path):
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    if rope["rope_type"] != "default":
        config["rope_scaling"] = rope
    path.write_text(json.dumps(config, indent=2) + "\n")


def reload(folder):
    """The stored model in float64, made anew: rope scalings keep state from one call to the next."""
    with exact():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").train()


def measure(folder, documents):
    """Logits, mean loss over every next token of the documents, and its gradients."""
    losses, logits, gradients = [], [], {}
    count = sum(len(ids) - 1 for ids in documents)
    for ids in documents:
        model = reload(folder)
        with exact():
            output = model(ids[None], use_cache=False).logits[0]
            loss = next_token_loss(output, ids).sum() / count
            loss.backward()
        losses.append(loss.item())
        logits.append(output.detach())
        for name, weight in model.named_parameters():
            gradients[name] = gradients.get(name, 0) + weight.grad
    result = {"input_ids": torch.cat(documents).int(), "logits": torch.cat(logits), "loss": torch.tensor([sum(losses)], dtype=torch.float64)}
    result.update({f"grad.{name}": gradient for name, gradient in gradients.items()})
    return {name: (value if value.dtype == torch.int32 else value.float()).contiguous() for name, value in result.items()}


def stored_names(folder):
    names = set()
    for path in folder.glob("model*.safetensors"):
        with safe_open(path, "pt") as file:
            names |= set(file.keys())
    return names


def make(name, config, seed):
    folder = OUT / name
    shutil.rmtree(folder, ignore_errors=True)
    element, shards = STORED.get(name, (torch.float32, False))
    model = AutoModelForCausalLM.from_config(copy.deepcopy(config))
    randomise(model, seed)
    model.to(element).save_pretrained(folder, max_shard_size="40KB" if shards else "1GB")
    (folder / "generation_config.json").unlink(missing_ok=True)
    if name in OLD_CONFIG:
        rewrite_config(folder / "config.json")
    for path in folder.iterdir():
        path.chmod(0o644)

    generator = torch.Generator().manual_seed(seed + 1000)
    draw = lambda length: torch.randint(0, VOCABULARY, (length,), generator=generator)
    golden = measure(folder, [draw(TOKENS)])
    assert {key[5:] for key in golden if key.startswith("grad.")} == stored_names(folder)
    assert all(value.abs().max() > 1e-4 for key, value in golden.items() if key.startswith("grad."))
    save_file(golden, folder / "golden.safetensors")
    if name in PACKED:
        packed = measure(folder, [draw(length) for length in DOCUMENTS])
        save_file({"lengths": torch.tensor(DOCUMENTS, dtype=torch.int32), **packed}, folder / "packed.safetensors")

    single = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        far = (single(golden["input_ids"].long()[None]).logits[0] - golden["logits"]).abs().max().item()
    return golden, far


def main():
    torch.set_num_threads(1)
    logits = {}
    for seed, (name, config) in enumerate(MODELS.items()):
        golden, far = make(name, config, seed)
        logits[name] = golden["logits"]
        print(f"{name:15} loss {golden['loss'].item():.6f}  logits std {golden['logits'].std():.3f}  float32 is {far:.1e} away")


if __name__ == "__main__":
    main()
