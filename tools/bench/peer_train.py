"""Times supervised training in transformers (+ PEFT): 512-token rows, one a step, AdamW, norm clipped at 1.

    peer_train.py MODEL                  every weight
    peer_train.py MODEL --lora           LoRA r 8 on all linear layers
    peer_train.py MODEL --lora --compile the same through torch.compile
"""

import time

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from peer import arguments, report, since_start, text_rows


def main():
    options = arguments(__doc__, lora=(bool, False), compile=(bool, False), length=(int, 512))
    rows = text_rows(options, AutoTokenizer.from_pretrained(options.model), options.length)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    if options.lora:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules="all-linear"))
    model.train()
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, weight_decay=0.0)
    forward = torch.compile(model) if options.compile else model
    first, tokens, seconds = since_start(), [], []
    for ids in rows[:options.steps + 1]:
        start = time.perf_counter()
        forward(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        tokens.append(ids.numel())
        seconds.append(time.perf_counter() - start)
    report(first, tokens[1:], seconds[1:])


if __name__ == "__main__":
    main()
