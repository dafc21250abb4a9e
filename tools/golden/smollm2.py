"""Reference values on the real model: its float32 folder, scores, a greedy answer, LoRA fine-tuning and LoRA DPO.

    smollm2.py prepare MODELS    the GGUF dequantised to an HF folder, and the starting adapter as a PEFT folder
    smollm2.py score MODELS      tests/golden/smollm2/score.json
    smollm2.py sft MODELS        tests/golden/smollm2/sft.json
    smollm2.py dpo MODELS        tests/golden/smollm2/dpo.json (slow: one thread, about half an hour)

MODELS is a folder outside the repository for what is too large to keep.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

from common import ADAPTER_FORMULA, DATA, GGUF, GOLDEN, fill_adapter, write_json

OUT = GOLDEN / "smollm2"
STEPS, ROWS, LEARNING_RATE = 20, 2, 1e-4
LORA = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.0, "target_modules": ["q_proj", "v_proj"]}
TEXTS = [
    "The swift is among the fastest of birds in level flight. It feeds, drinks, mates and even sleeps on the wing, and a "
    "young bird that leaves its nest in July may not land again for two or three years. When evening comes, whole flocks "
    "climb to three kilometres and drift there half awake until dawn, correcting for the wind as they go. Nobody knew how "
    "until small tags recorded the light and the acceleration of every hour of a year.",
    "def greatest_common_divisor(a: int, b: int) -> int:\n    \"\"\"Euclid's algorithm.\"\"\"\n    while b:\n        a, b = "
    "b, a % b\n    return abs(a)\n\n\nfor left, right in [(12, 18), (7, 1024), (270, 192)]:\n    print(left, right, "
    "greatest_common_divisor(left, right))\n\n# In 1999, 3.14159 people of 2,147,483,647 asked why; 42% never did.\n",
    "Zürich, 3 März 2024 — «Über Geschmack läßt sich nicht streiten», sagte er. Η γλώσσα είναι ζωντανή. 東京は日本の首都です。"
    "Привет, мир! Ça va? 😀🚀 The naïve café's menu: crème brûlée, 12 €, jalapeño poppers, £7.50. It’s “quoted” … and done.",
]


def load(models, adapter=True):
    """The float32 model, with the starting adapter (trainable) unless told otherwise, and the tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(models / "smollm2-f32")
    model = AutoModelForCausalLM.from_pretrained(models / "smollm2-f32", dtype=torch.float32)
    if adapter:
        model = PeftModel.from_pretrained(model, models / "start_adapter", is_trainable=True)
    return model, tokenizer


def prepare(models, data):
    source, file = (data / GGUF).parent, (data / GGUF).name
    quantised = AutoModelForCausalLM.from_pretrained(source, gguf_file=file, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=file)
    config = quantised.config.to_dict()
    for key in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        config.pop(key, None)
    model = LlamaForCausalLM(LlamaConfig(**config)).float()
    model.load_state_dict(quantised.state_dict())
    model.tie_weights()
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=2)
    model.save_pretrained(models / "smollm2-f32")
    tokenizer.save_pretrained(models / "smollm2-f32")
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **LORA))
    fill_adapter(model)
    model.peft_config["default"].base_model_name_or_path = "smollm2-f32"
    model.save_pretrained(models / "start_adapter")


@torch.no_grad()
def score(models, _data):
    model, tokenizer = load(models, adapter=False)
    model.eval()
    texts = []
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=False)
        logprobs = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
        picked = logprobs.gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
        texts.append({"text": text, "ids": ids, "logprobs": picked.tolist(), "nll": -picked.double().mean().item()})
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    rendered = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    prompt = tokenizer.encode(rendered, add_special_tokens=False)
    output = model.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                            do_sample=False, max_new_tokens=32, return_dict_in_generate=True, output_logits=True)
    ids = output.sequences[0, len(prompt):].tolist()
    logprobs = [step[0].log_softmax(-1)[token].item() for step, token in zip(output.logits, ids)]
    generate = {"messages": messages, "rendered": rendered, "prompt_ids": prompt, "ids": ids, "logprobs": logprobs,
                "text": tokenizer.decode(ids, skip_special_tokens=True)}
    write_json(OUT / "score.json", {
        "about": "float32; logprobs[i] is log p(ids[i+1]); nll is their negated mean; generate is greedy, the end marker included",
        "texts": texts, "generate": generate})


def alpaca(data, count):
    """The first rows in file order as conversations. LLaMA-Factory and ms-swift join instruction and input by a newline."""
    rows = json.loads((data / "sft/alpaca_en_demo.json").read_text())[:count]
    for row in rows:
        question = row["instruction"] + ("\n" + row["input"] if row["input"] else "")
        yield [{"role": "user", "content": question}, {"role": "assistant", "content": row["output"]}]


def sft(models, data):
    model, tokenizer = load(models)
    model.train()
    examples = []
    for messages in alpaca(data, STEPS * ROWS):
        prompt = tokenizer.apply_chat_template(messages[:1], add_generation_prompt=True, tokenize=False)
        whole = tokenizer.apply_chat_template(messages, tokenize=False)
        assert whole.startswith(prompt) and whole.endswith("<|im_end|>\n")
        prompt, whole = (tokenizer.encode(text, add_special_tokens=False) for text in (prompt, whole))
        assert whole[:len(prompt)] == prompt
        examples.append({"ids": whole, "prompt_length": len(prompt)})
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    steps = []
    for step in range(STEPS):
        batch = examples[step * ROWS:][:ROWS]
        count = sum(len(row["ids"]) - row["prompt_length"] for row in batch)
        total = 0.0
        for row in batch:  # one row at a time: no padding, so nothing but the numbers
            ids = torch.tensor([row["ids"]])
            logprobs = model(ids, use_cache=False).logits[0, row["prompt_length"] - 1:-1].log_softmax(-1)
            loss = -logprobs.gather(1, ids[0, row["prompt_length"]:, None]).sum() / count
            loss.backward()
            total += loss.item()
        norm = torch.nn.utils.clip_grad_norm_(trained, 1.0).item()
        optimizer.step()
        optimizer.zero_grad()
        steps.append({"step": step + 1, "loss": total, "grad_norm": norm, "trained_tokens": count,
                      "tokens": sum(len(row["ids"]) for row in batch)})
        print(steps[-1], flush=True)
    write_json(OUT / "sft.json", {
        "about": "alpaca_en_demo, rows in file order, content = instruction [+ newline + input]; the answer's tokens, end "
                 "marker and trailing newline are trained; loss = sum over trained tokens of the batch / their count; "
                 "grad_norm before clipping at 1.0; loss is that of the batch before its update",
        "adapter": ADAPTER_FORMULA, "lora": LORA, "batch_size": ROWS,
        "optimizer": {"type": "adamw", "learning_rate": LEARNING_RATE, "betas": [0.9, 0.999], "eps": 1e-8,
                      "weight_decay": 0.0, "schedule": "constant", "max_grad_norm": 1.0},
        "steps": steps, "first_rows": examples[:4]})


def preferences(data):
    """dpo_en_demo in TRL's conversational form."""
    roles = {"human": "user", "gpt": "assistant", "system": "system"}
    turn = lambda message: {"role": roles[message["from"]], "content": message["value"]}
    for row in json.loads((data / "preference/dpo_en_demo.json").read_text()):
        yield {"prompt": [turn(message) for message in row["conversations"]],
               "chosen": [turn(row["chosen"])], "rejected": [turn(row["rejected"])]}


def dpo(models, data):
    from trl import DPOConfig, DPOTrainer

    model, tokenizer = load(models)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        arguments = DPOConfig(
            output_dir=folder, per_device_train_batch_size=ROWS, max_steps=STEPS, beta=0.1, loss_type=["sigmoid"],
            max_length=1024, learning_rate=LEARNING_RATE, lr_scheduler_type="constant", warmup_steps=0, optim="adamw_torch",
            adam_beta1=0.9, adam_beta2=0.999, adam_epsilon=1e-8, weight_decay=0.0, max_grad_norm=1.0, logging_steps=1,
            train_sampling_strategy="sequential", bf16=False, use_cpu=True, save_strategy="no", report_to=[], seed=0,
            dataloader_pin_memory=False)
        trainer = DPOTrainer(model=model, args=arguments, train_dataset=Dataset.from_list(list(preferences(data))),
                             processing_class=tokenizer)
        assert "ref" in trainer.model.peft_config, "the reference is not the starting adapter"
        trainer.train()
    wanted = ("loss", "grad_norm", "logps/chosen", "logps/rejected", "rewards/chosen", "rewards/rejected", "rewards/margins",
              "rewards/accuracies", "num_tokens")
    steps = [{"step": entry["step"], **{key: entry[key] for key in wanted}}
             for entry in trainer.state.log_history if "loss" in entry]
    rows = trainer.train_dataset
    write_json(OUT / "dpo.json", {
        "about": "TRL's DPOTrainer on dpo_en_demo, rows in file order, prompt = conversations, one assistant message each "
                 "side. The reference is a frozen copy of the starting adapter (TRL adds it as adapter \"ref\" when it is "
                 "given a PeftModel), so the first loss is ln 2. logps and rewards are means over the batch's pairs. Rows "
                 "whose prompt alone fills max_length are dropped; others lose the end of each side beyond it. grad_norm "
                 "before clipping at 1.0. num_tokens sums prompt + answer of both sides, the prompt counted twice",
        "adapter": ADAPTER_FORMULA, "lora": LORA, "batch_size": ROWS, "beta": 0.1, "loss_type": "sigmoid", "max_length": 1024,
        "optimizer": {"type": "adamw", "learning_rate": LEARNING_RATE, "betas": [0.9, 0.999], "eps": 1e-8,
                      "weight_decay": 0.0, "schedule": "constant", "max_grad_norm": 1.0},
        "rows_kept": len(rows), "steps": steps,
        "lengths": [[len(row[key]) for key in ("prompt_ids", "chosen_ids", "rejected_ids")] for row in rows],
        "first_rows": [{key: row[key] for key in ("prompt_ids", "chosen_ids", "rejected_ids")}
                       for row in rows.select(range(4))]})
    print(f"{time.monotonic() - start:.0f} s")


def main():
    verbs = {"prepare": prepare, "score": score, "sft": sft, "dpo": dpo}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=verbs)
    parser.add_argument("models", type=Path)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    verbs[arguments.verb](arguments.models, arguments.data)


if __name__ == "__main__":
    main()
