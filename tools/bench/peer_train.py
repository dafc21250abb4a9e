"""Times supervised training in transformers (+ PEFT): 512-token rows, one a step, AdamW, norm clipped at 1.

    peer_train.py MODEL                  every weight
    peer_train.py MODEL --lora           LoRA r 8 on all linear layers
    peer_train.py MODEL --lora --compile the same through torch.compile
"""

import torch

from peer import arguments, autocast, load, text_rows, timed


def main():
    options = arguments(__doc__, lora=(bool, False), compile=(bool, False), length=(int, 512))
    rows = text_rows(options, options.length)
    model = load(options)
    if options.lora:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules="all-linear"),
                               autocast_adapter_dtype=False)
    model.train()
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, weight_decay=0.0)
    forward = torch.compile(model) if options.compile else model

    def step(i):
        with autocast(options):
            loss = forward(input_ids=rows[i], labels=rows[i], use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return rows[i].numel()

    timed(options, step)


if __name__ == "__main__":
    main()
