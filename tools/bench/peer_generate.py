"""Times greedy generation in transformers with its key-value cache: new tokens per second after one prompt."""

import time

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from peer import arguments, report, since_start


@torch.no_grad()
def main():
    options = arguments(__doc__, tokens=(int, 96), prompt=(str, "Once upon a time"))
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
    ids = torch.tensor([tokenizer.encode(options.prompt, add_special_tokens=False)])
    generate = lambda count: model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, min_new_tokens=count,
                                            max_new_tokens=count)
    generate(4)
    first = since_start()
    seconds = []
    for _ in range(options.steps):
        start = time.perf_counter()
        generate(options.tokens)
        seconds.append(time.perf_counter() - start)
    report(first, [options.tokens] * len(seconds), seconds)


if __name__ == "__main__":
    main()
