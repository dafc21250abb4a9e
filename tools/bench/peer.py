"""What the peer scripts share: one model folder, a clock, and one JSON line at the end.

A peer is PyTorch with transformers, PEFT, TRL or tokenizers doing the job that bench.py gives to apus, on the CPU with a
fixed number of threads: in float32, in pure bfloat16 (--dtype bfloat16) or with float32 weights under bfloat16 --autocast.
"""

import argparse
import contextlib
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
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the weights")
    parser.add_argument("--autocast", action="store_true", help="compute in bfloat16 from the weights as they are")
    for name, (kind, default) in defaults.items():
        if kind is bool:
            parser.add_argument(f"--{name}", action="store_true")
        else:
            parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=default)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    return options


def load(options):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(options.model, dtype=getattr(torch, options.dtype))


def autocast(options):
    return torch.autocast("cpu", torch.bfloat16) if options.autocast else contextlib.nullcontext()


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


def report(ready, counts, seconds):
    """Prints the one line. ready: since_start() when the first useful work began; counts (of tokens or bytes) and seconds: of
    each step behind the first."""
    rate = statistics.median(count / time for count, time in zip(counts, seconds))
    print(json.dumps({"rate": rate, "ready": ready, "memory": peak_memory(), "counts": counts, "seconds": seconds}), flush=True)


def timed(options, step):
    """Runs step(i) once and then as often as is asked; step gives its count. Reports; what the first step took beyond the
    others (compiling, say) came before it could begin."""
    step(0)
    first_done, counts, seconds = since_start(), [], []
    for i in range(1, options.steps + 1):
        start = time.perf_counter()
        counts.append(step(i))
        seconds.append(time.perf_counter() - start)
    report(first_done - statistics.median(seconds), counts, seconds)


def text(options):
    return (options.data / "text/tinyshakespeare.txt").read_text()


def text_rows(options, length=512):
    """Rows of consecutive tokens of one text, as a `text` dataset with that max_length gives them."""
    from transformers import AutoTokenizer

    ids = AutoTokenizer.from_pretrained(options.model).encode(text(options)[:200_000], add_special_tokens=False)
    return [torch.tensor([ids[start:start + length]]) for start in range(0, len(ids) - length, length)]
