"""What the peer scripts share: one model folder, a clock, and one JSON line at the end.

A peer is PyTorch with transformers, PEFT or TRL doing the job that bench.py gives to apus: float32, CPU, fixed threads.
"""

import argparse
import json
import os
import statistics
import time
from pathlib import Path

import torch


def arguments(doc, **defaults):
    """The options every peer takes; `defaults` adds more as name=(type, default)."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="an HF folder with float32 weights and a tokenizer")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=6, help="timed steps; one more comes first and is not counted")
    for name, (kind, default) in defaults.items():
        if kind is bool:
            parser.add_argument(f"--{name}", action="store_true")
        else:
            parser.add_argument(f"--{name}", type=kind, default=default)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    return options


def since_start():
    """Seconds since this process was started, imports included."""
    started = int(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started


def peak_memory():
    """The largest resident size so far, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no VmHWM in /proc/self/status")


def report(first_step, tokens, seconds):
    """Prints the one line. tokens and seconds are those of each timed step."""
    print(json.dumps({
        "tokens_per_second": statistics.median(count / time for count, time in zip(tokens, seconds)),
        "first_step_seconds": first_step, "peak_rss": peak_memory(), "tokens": tokens, "seconds": seconds}), flush=True)


def text_rows(options, tokenizer, length=512):
    """Rows of consecutive tokens of one text, as a `text` dataset with that max_length gives them."""
    ids = tokenizer.encode((options.data / "text/tinyshakespeare.txt").read_text()[:200_000], add_special_tokens=False)
    return [torch.tensor([ids[start:start + length]]) for start in range(0, len(ids) - length, length)]
