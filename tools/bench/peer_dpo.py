"""Times TRL's DPOTrainer: LoRA r 8 on q_proj and v_proj, dpo_en_demo in file order, two pairs a step, max_length 1024.

Tokens are counted as apus counts them: a pair's prompt once and both answers. TRL recomputes activations in the backward
pass by default; --checkpointing keeps that (less memory, slower), without it every activation is kept.
"""

import json
import tempfile
import time

from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer

from peer import arguments, load, report, since_start

ROWS, LENGTH = 2, 1024


class Clock(TrainerCallback):
    """How long each step took, and when the first was done."""

    def __init__(self):
        self.first_done, self.seconds = None, []

    def on_step_begin(self, *_, **__):
        self.start = time.perf_counter()

    def on_step_end(self, *_, **__):
        self.seconds.append(time.perf_counter() - self.start)
        self.first_done = self.first_done or since_start()


def rows(path):
    roles = {"human": "user", "gpt": "assistant", "system": "system"}
    turn = lambda message: {"role": roles[message["from"]], "content": message["value"]}
    return [{"prompt": [turn(message) for message in row["conversations"]], "chosen": [turn(row["chosen"])],
             "rejected": [turn(row["rejected"])]} for row in json.loads(path.read_text())]


def main():
    options = arguments(__doc__, checkpointing=(bool, False))
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    lora = LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"])
    model = get_peft_model(load(options), lora, autocast_adapter_dtype=False)
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = DPOTrainer(
            model=model, processing_class=tokenizer, callbacks=[clock],
            train_dataset=Dataset.from_list(rows(options.data / "preference/dpo_en_demo.json")),
            args=DPOConfig(output_dir=folder, per_device_train_batch_size=ROWS, max_steps=options.steps + 1, beta=0.1,
                           max_length=LENGTH, learning_rate=1e-4, lr_scheduler_type="constant", max_grad_norm=1.0,
                           train_sampling_strategy="sequential", bf16=options.autocast, use_cpu=True, save_strategy="no",
                           report_to=[], gradient_checkpointing=options.checkpointing, disable_tqdm=True,
                           dataloader_pin_memory=False))
        trainer.train()
    counts = [min(LENGTH, len(row["prompt_ids"]) + len(row["chosen_ids"])) + min(LENGTH, len(row["prompt_ids"]) +
              len(row["rejected_ids"])) - len(row["prompt_ids"]) for row in trainer.train_dataset]
    tokens = [sum(counts[step * ROWS:][:ROWS]) for step in range(options.steps + 1)]
    report(clock.first_done - clock.seconds[0], tokens[1:], clock.seconds[1:])


if __name__ == "__main__":
    main()
