"""apus on each side of bench.py: the real command, timed from outside or by its own event log.

Every function gives {rate, ready, memory, counts, seconds}: tokens (or bytes) per second, seconds from the process's start to
its first useful work, bytes, and what each timed step did in which time. The first step is never counted.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from process import anonymous, run, spawn, wait

HERE = Path(__file__).resolve().parent
SHORT = 4  # tokens of the answer whose time is taken from a long answer's: reading the weights and the prompt
DATASET = {"full": "text/tinyshakespeare.txt", "lora": "text/tinyshakespeare.txt", "dpo": "preference/dpo_en_demo.json"}


def result(counts, seconds, ready, memory):
    rate = statistics.median(count / time for count, time in zip(counts, seconds))
    return {"rate": rate, "ready": ready, "memory": memory, "counts": counts, "seconds": seconds}


def backend(options, dtype):
    return f"backend={{type: cpu, threads: {options.threads}" + (f", dtype: {dtype}}}" if dtype == "bfloat16" else "}")


def train(options, config, dtype, *overrides, steps=None, no_files=False):
    """A pipeline with one stage `train`. no_files: memory is the most that belongs to no file, which mapped data does."""
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as errors:
        folder, steps = Path(folder) / "run", steps or options.steps
        command = [options.apus, "run", HERE / "configs" / f"{config}.yaml", f"run={folder}", backend(options, dtype),
                   f"stages.train.max_steps={steps + 1}", *overrides]
        events, first_done, start = folder / "train" / "events.jsonl", None, time.monotonic()
        process, most = spawn(options, command, stdout=subprocess.DEVNULL, stderr=errors), 0
        while (first_done is None or no_files) and os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            time.sleep(0.01)
            most = max(most, anonymous(process)) if no_files else 0
            if first_done is None and events.exists() and '"loss"' in events.read_text():
                first_done = time.monotonic() - start
        resident = wait(process, "apus run", errors)
        memory = most if no_files else resident
        done = [event for event in map(json.loads, events.read_text().splitlines()) if "loss" in event]
    counts = [step["tokens"] for step in done]
    seconds = [step["tokens"] / step["tokens_per_second"] for step in done]
    return result(counts[1:], seconds[1:], (first_done or 0.0) - seconds[0], memory)


def fine_tune(options, job, dtype, *overrides, steps=None):
    return train(options, job, dtype, f"stages.train.model={options.model}", f"stages.train.dataset.path={options.data / DATASET[job]}", *overrides,
                 steps=steps)


def generate_command(options, weights, count):
    """Products as llama.cpp does them: in bfloat16 where the weights are, in integers where they are quantised."""
    return [options.apus, "generate", weights, "--max-tokens", count, "--threads", options.threads, "--json",
            *(("--dtype", "bfloat16") if options.dtype == "bfloat16" else ()),
            *(("--activations", "int8") if options.dtype in ("q8_0", "q4_0") else ())]


def one_by_one(options, weights, prompts, count):
    """Requests of one process, one after the other, timed by when their lines come: what the first one takes is "ready", so that those
    behind it meet memory that is there already, as llama-bench's timed passes do. count: most tokens of the others' answers."""
    path = options.work / "requests.jsonl"
    path.write_text("".join(json.dumps({"input_ids": ids, "max_tokens": count if i else 1}) + "\n" for i, ids in enumerate(prompts)))
    times, told, start = [], [], time.monotonic()
    with tempfile.TemporaryFile("w+") as errors:
        process = spawn(options, [*generate_command(options, weights, count), "--prompts", path, "--parallel", 1],
                        stdout=subprocess.PIPE, stderr=errors, text=True)
        for line in process.stdout:
            times.append(time.monotonic())
            told.append(json.loads(line))
        memory = wait(process, "apus generate", errors)
    return [len(answer["ids"]) for answer in told[1:]], [b - a for a, b in zip(times, times[1:])], times[0] - start, memory


def generate(options, weights, count, repeats=1):
    """Answers to a prompt of one token: as many passes of one token as there are new ones."""
    return result(*one_by_one(options, weights, [[1 + i] for i in range(1 + repeats)], count))


def prefill(options, weights, count, repeats=4):
    """Prompts that have no beginning in common, an answer of one token behind each."""
    text = (options.data / "text/tinyshakespeare.txt").read_text()[:count * 8 * (1 + repeats)]
    ids = json.loads(tokenize(options, text)[0])["ids"]
    _, seconds, ready, memory = one_by_one(options, weights, [ids[i * count:(i + 1) * count] for i in range(1 + repeats)], 1)
    return result([count] * repeats, seconds, ready, memory)


def batch(options, weights, prompts, count, parallel):
    """All prompts of a JSON Lines file at once."""
    def once(tokens):
        start = time.monotonic()
        output, memory = run(options, [*generate_command(options, weights, tokens), "--prompts", prompts, "--parallel", parallel])
        seconds = time.monotonic() - start
        return sum(len(json.loads(line)["ids"]) for line in output.splitlines()), seconds, memory
    short, long = once(SHORT), once(count)
    return result([long[0] - short[0]], [long[1] - short[1]], short[1], long[2])


def tokenize(options, text, *flags):
    with tempfile.TemporaryFile("w+") as source:
        source.write(text)
        source.seek(0)
        return run(options, [options.apus, "tokenize", options.hf, *flags], stdin=source)


def tokenize_file(options, path):
    """One thread: on one core the command uses no more."""
    alone = argparse.Namespace(**{**vars(options), "threads": 1})
    start = time.monotonic()
    tokenize(alone, "")
    empty = time.monotonic() - start
    with path.open() as source:
        start = time.monotonic()
        _, memory = run(alone, [options.apus, "tokenize", options.hf], stdin=source)
    return result([path.stat().st_size], [time.monotonic() - start - empty], empty, memory)


def encode_dataset(options, path):
    """A dataset from its file to the cache, on all threads: a run with a cold cache against the same with a warm one."""
    times = []
    with tempfile.TemporaryDirectory() as cache, tempfile.TemporaryDirectory() as folder:
        own = type(options)(**{**vars(options), "cache": Path(cache)})
        for kind in ("cold", "warm"):
            start = time.monotonic()
            _, memory = run(own, [options.apus, "run", HERE / "configs" / "lora.yaml", f"run={folder}/{kind}", backend(options, "float32"),
                                  f"stages.train.model={options.model}", f"stages.train.dataset.path={path}",
                                  "stages.train.dataset.max_length=64", "stages.train.max_steps=1"])
            times.append((time.monotonic() - start, memory))
    return result([path.stat().st_size], [times[0][0] - times[1][0]], times[1][0], times[0][1])


def help_time(options):
    times = []
    for _ in range(20):
        start = time.monotonic()
        run(options, [options.apus, "--help"])
        times.append(time.monotonic() - start)
    return times
