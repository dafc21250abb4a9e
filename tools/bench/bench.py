"""Times apus and its peers in turn on one machine and prints medians, spreads and ratios.

    bench.py --apus build/apus --model MODEL --python VENV/bin/python --hf HF_FOLDER [--jobs full lora dpo generate] [--rounds 3]

MODEL is what apus loads, HF_FOLDER the same weights in float32 for the peers. Each round runs every side of a job once, one
after the other, on the same cores; a side's figure is the median over rounds of the median over its steps. The first step
of a run is not counted, on either side. "first step" is from the process's start to the beginning of its first training
step; for generate, to the end of a four-token answer.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
PEERS = {
    "full": {"transformers": ["peer_train.py"]},
    "lora": {"PEFT": ["peer_train.py", "--lora"], "PEFT compiled": ["peer_train.py", "--lora", "--compile"]},
    "dpo": {"TRL": ["peer_dpo.py"]},
    "generate": {"transformers": ["peer_generate.py"]},
}
DATASET = {"full": "text/tinyshakespeare.txt", "lora": "text/tinyshakespeare.txt", "dpo": "preference/dpo_en_demo.json"}


def spawn(options, command, **pipes):
    """Starts a command on the first cores of the machine."""
    cores = sorted(os.sched_getaffinity(0))[:options.threads]
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads), "OPENBLAS_NUM_THREADS": str(options.threads)}
    return subprocess.Popen([str(part) for part in command], env=environment,
                            preexec_fn=lambda: os.sched_setaffinity(0, cores), **pipes)


def wait(process, command):
    """Ends well or raises; gives the peak resident size in bytes."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}: exit {process.returncode}")
    return usage.ru_maxrss * 1024


def peer(options, command):
    command = [options.python, HERE / command[0], options.hf, *command[1:], "--data", options.data, "--threads",
               options.threads, "--steps", options.steps]
    with tempfile.TemporaryFile("w+") as output:
        wait(spawn(options, command, stdout=output, stderr=subprocess.DEVNULL), command)
        output.seek(0)
        return json.loads(output.read().strip().splitlines()[-1])


def ours_train(options, job):
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [options.apus, "run", HERE / "configs" / f"{job}.yaml", f"run={run}", f"stages.train.model={options.model}",
                   f"stages.train.dataset.path={options.data / DATASET[job]}", f"stages.train.max_steps={options.steps + 1}"]
        events, first, start = run / "train" / "events.jsonl", None, time.monotonic()
        process = spawn(options, command, stdout=subprocess.DEVNULL)
        while first is None and os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            time.sleep(0.01)
            if events.exists() and '"loss"' in events.read_text():
                first = time.monotonic() - start
        memory = wait(process, command)
        steps = [event for event in map(json.loads, events.read_text().splitlines()) if "loss" in event]
    seconds = [step["tokens"] / step["tokens_per_second"] for step in steps]
    tokens = [step["tokens"] for step in steps]
    first = first - seconds[0] if first is not None else 0.0
    return {"tokens_per_second": statistics.median(n / t for n, t in zip(tokens[1:], seconds[1:])), "peak_rss": memory,
            "first_step_seconds": first, "tokens": tokens[1:], "seconds": seconds[1:]}


def ours_generate(options):
    """The command loads the model each time, so a short answer's time is taken from a long one's."""
    def once(count):
        command = [options.apus, "generate", options.model, "--prompt", "Once upon a time", "--max-tokens", count, "--json"]
        with tempfile.TemporaryFile("w+") as output:
            start = time.monotonic()
            memory = wait(spawn(options, command, stdout=output), command)
            seconds = time.monotonic() - start
            output.seek(0)
            return len(json.load(output)["ids"]), seconds, memory
    short, long = once(4), once(100)
    if long[0] <= short[0]:
        raise SystemExit("the model ended its answer too early to time it")
    tokens, seconds = long[0] - short[0], long[1] - short[1]
    return {"tokens_per_second": tokens / seconds, "peak_rss": long[2], "first_step_seconds": short[1], "tokens": [tokens],
            "seconds": [seconds]}


def spread(values):
    return f"{statistics.median(values):8.1f} ({min(values):.1f}-{max(values):.1f})"


def measure(options, job):
    sides = {"apus": lambda: ours_generate(options) if job == "generate" else ours_train(options, job)}
    for name, command in PEERS[job].items():
        sides[name] = lambda command=command: peer(options, command)
    results = {name: [] for name in sides}
    for _ in range(options.rounds):
        for name, run in sides.items():
            results[name].append(run())
    middle = lambda name, key: statistics.median(result[key] for result in results[name])
    print(f"\n{job}\n{'':14} {'tokens/s':>24} {'peak GB':>8} {'first step s':>12} {'apus is':>8} {'memory':>7}")
    for name, rounds in results.items():
        speed = middle("apus", "tokens_per_second") / middle(name, "tokens_per_second")
        memory = middle("apus", "peak_rss") / middle(name, "peak_rss")
        print(f"{name:14} {spread([result['tokens_per_second'] for result in rounds]):>24} {middle(name, 'peak_rss') / 1e9:8.2f} "
              f"{middle(name, 'first_step_seconds'):12.2f} {speed:7.2f}x {memory:6.2f}x", flush=True)
    for name, rounds in results.items():
        mine = rounds[0]["tokens"]
        if job != "generate" and mine != results["apus"][0]["tokens"]:
            print(f"note: {name} trained on {mine} tokens a step, apus on {results['apus'][0]['tokens']}")
    return results


def start_time(options):
    times = []
    for _ in range(20):
        start = time.monotonic()
        wait(spawn(options, [options.apus, "--help"], stdout=subprocess.DEVNULL), [options.apus, "--help"])
        times.append((time.monotonic() - start) * 1000)
    print(f"apus --help: {spread(times)} ms")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--apus", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--hf", type=Path, required=True)
    parser.add_argument("--python", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--jobs", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write every figure here")
    options = parser.parse_args()
    start_time(options)
    results = {job: measure(options, job) for job in options.jobs}
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
