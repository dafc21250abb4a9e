"""Times transformers with its key-value cache, greedily.

    peer_generate.py MODEL                     new tokens per second, --tokens of them after --prompt
    peer_generate.py MODEL --prefill 512       tokens per second of a prompt of so many tokens
    peer_generate.py MODEL --prompts FILE      each line of a JSON Lines file ({"prompt": …}), one after the other
    peer_generate.py MODEL --prompts FILE --together   all of them in one padded batch

Of answers, the tokens behind the fourth are counted, and the time that they took.
"""

import json
import time
from pathlib import Path

import torch
from transformers import AutoTokenizer

from peer import arguments, load, report, since_start, text_rows, timed

SHORT = 4


@torch.no_grad()
def main():
    options = arguments(__doc__, tokens=(int, 96), prompt=(str, "Once upon a time"), prefill=(int, 0), prompts=(Path, None),
                        together=(bool, False))
    tokenizer = AutoTokenizer.from_pretrained(options.model, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = load(options).eval()

    def generate(batch, count):
        start = time.perf_counter()
        model.generate(**batch, do_sample=False, min_new_tokens=count, max_new_tokens=count)
        return time.perf_counter() - start

    if options.prefill:
        rows = text_rows(options, options.prefill)

        def step(i):
            model(input_ids=rows[i], use_cache=True, logits_to_keep=1)
            return options.prefill

        return timed(options, step)
    prompts = [options.prompt]
    if options.prompts:
        prompts = [json.loads(line)["prompt"] for line in options.prompts.read_text().splitlines()]
    batches = [prompts] if options.together else [[prompt] for prompt in prompts]
    batches = [tokenizer(batch, return_tensors="pt", padding=True, add_special_tokens=False) for batch in batches]
    count = len(prompts) * (options.tokens - SHORT)
    round_trip = lambda: sum(generate(batch, options.tokens) - generate(batch, SHORT) for batch in batches)
    generate(batches[0], SHORT)
    ready = since_start()
    seconds = [round_trip() for _ in range(options.steps)]
    report(ready, [count] * options.steps, seconds)


if __name__ == "__main__":
    main()
