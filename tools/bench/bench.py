"""Times apus and its peers in turn on one machine: rates with medians and spread, peak memory, share of the measured peak.

    bench.py --apus build/apus --hf HF_FOLDER --python VENV/bin/python [--llama-cpp DIR] [--llm-c DIR] [--jobs full lora …]

HF_FOLDER holds a model's weights in float32; --model is what apus trains from, when it is another file of the same weights.
--python has torch, transformers, peft, trl and tokenizers; --llama-cpp and --llm-c are folders with llama-bench and
llama-server, and with train_gpt2, built for this machine. A peer that is not given is left out. GGUF files are written from
HF_FOLDER by `apus export`.

Each round runs every side of a job once, one after the other, on the same cores; a side's figure is the median over rounds of
the median over its steps. The first step of a run is not counted, on either side. "ready" is from the process's start to the
beginning of its first training step or to the end of its shortest answer. GFLOP/s are model FLOPs: what the formulas need,
whatever a side computes twice or leaves out.
"""

import argparse
import copy
import datetime
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import llama_cpp
import llm_c
import ours
from process import Failed, run

HERE = Path(__file__).resolve().parent
LENGTH, ANSWER, PARALLEL = 512, 128, 16
VERSIONS = "import importlib.metadata as m; print(*(f'{p} {m.version(p)}' for p in ('torch', 'transformers', 'peft', 'trl', 'tokenizers')), sep=', ')"


class Cost:
    """FLOPs and bytes of a model, by its configuration."""

    def __init__(self, config):
        hidden, layers = config["hidden_size"], config["num_hidden_layers"]
        heads, kv = config["num_attention_heads"], config.get("num_key_value_heads", config["num_attention_heads"])
        width = config.get("head_dim") or hidden // heads
        self.body = layers * hidden * (2 * heads * width + 2 * kv * width + 3 * config["intermediate_size"])
        self.head = hidden * config["vocab_size"]
        self.attention = 2 * layers * heads * width  # causal, both products: per token of a row and token before it

    def step(self, products, length=LENGTH):
        """products: 3 when every weight is trained (forward, gradients of input and weight), 2 when they are frozen."""
        return 2 * products * (self.body + self.head) + 3 * self.attention * length

    def prompt(self, length):
        return 2 * self.body + self.attention * length


class Side:
    """One program's way of doing a job. work: FLOPs or bytes for each token; peak: which of the measured peaks bounds it."""

    def __init__(self, name, measure, work=0, peak=None):
        self.name, self.measure, self.work, self.peak = name, measure, work, peak
        self.rounds, self.error = [], None

    def middle(self, key):
        return statistics.median(result[key] for result in self.rounds)

    def run(self):
        if self.error is None:
            try:
                self.rounds.append(self.measure())
            except (Failed, FileNotFoundError) as error:
                self.error = str(error)


def peer(options, name, *arguments):
    """A side that is a script in the peers' Python."""
    script, *rest = arguments

    def measure():
        command = [options.python, HERE / script, options.hf, *rest, "--data", options.data, "--threads", options.threads, "--steps", options.steps]
        return json.loads(run(options, command)[0].strip().splitlines()[-1])
    return (name, measure) if options.python else None


def sides(work, peak, *given):
    return [Side(name, measure, work, peak) for name, measure in filter(None, given)]


def torch_ways(options, name, script, *flags, compiled=True):
    """The ways PyTorch has to do a training job in options.dtype."""
    if options.dtype == "float32":
        ways = {name: [], f"{name}, compiled": ["--compile"]}
    else:
        ways = {f"{name}, autocast": ["--autocast"], f"{name}, bf16": ["--dtype", "bfloat16"],
                f"{name}, bf16, compiled": ["--dtype", "bfloat16", "--compile"]}
    return [peer(options, way, script, *flags, *more) for way, more in ways.items() if compiled or "--compile" not in more]


def fine_tune(options, job, products, ways):
    work = options.cost.step(products) if products else 0
    return sides(work, options.dtype, ("apus", lambda: ours.fine_tune(options, job, options.dtype)), *ways)


def full(options):
    return fine_tune(options, "full", 3, torch_ways(options, "transformers", "peer_train.py"))


def lora(options):
    return fine_tune(options, "lora", 2, torch_ways(options, "PEFT", "peer_train.py", "--lora"))


def dpo(options):
    return fine_tune(options, "dpo", 0, torch_ways(options, "TRL", "peer_dpo.py", compiled=False))


def transformers(options, *arguments):
    """transformers has no weights in GGUF's encodings."""
    name = "transformers, one by one" if "--prompts" in arguments and "--together" not in arguments else "transformers"
    dense = options.dtype in ("float32", "bfloat16")
    return peer(options, name, "peer_generate.py", "--dtype", options.dtype, *arguments) if dense else None


def llama(options, name, measure):
    return (name, measure) if options.llama_cpp else None


def generate(options):
    weights = options.weights()
    return sides(weights.stat().st_size, "read", ("apus", lambda: ours.generate(options, weights, 96)),
                 transformers(options, "--tokens", 96 + ours.SHORT))


def decode(options):
    weights = options.weights()
    return sides(weights.stat().st_size, "read", ("apus", lambda: ours.generate(options, weights, ANSWER, 3)),
                 llama(options, "llama.cpp", lambda: llama_cpp.bench(options, weights, 0, ANSWER)))


def prefill(options):
    weights = options.weights()
    return sides(options.cost.prompt(LENGTH), "bfloat16" if options.dtype == "bfloat16" else "float32",
                 ("apus", lambda: ours.prefill(options, weights, LENGTH)),
                 llama(options, "llama.cpp", lambda: llama_cpp.bench(options, weights, LENGTH, 0)), transformers(options, "--prefill", LENGTH))


def batch(options):
    """Requests of different lengths, all at once."""
    weights, prompts = options.weights(), options.work / "prompts.jsonl"
    lines = (options.data / "text/tinyshakespeare.txt").read_text().split("\n\n")[:PARALLEL]
    prompts.write_text("".join(json.dumps({"prompt": line[:40 + 4 * i]}) + "\n" for i, line in enumerate(lines)))
    return sides(0, None, ("apus", lambda: ours.batch(options, weights, prompts, ANSWER, PARALLEL)),
                 llama(options, "llama-server", lambda: llama_cpp.serve(options, weights, prompts, ANSWER, PARALLEL)),
                 transformers(options, "--prompts", prompts, "--tokens", ANSWER),
                 transformers(options, "--prompts", prompts, "--tokens", ANSWER, "--together"))


def llmc(options):
    cost = Cost({"hidden_size": llm_c.WIDTH, "num_hidden_layers": llm_c.LAYERS, "num_attention_heads": llm_c.HEADS,
                 "intermediate_size": llm_c.WIDTH * 8 // 3, "vocab_size": llm_c.VOCAB})  # two matrices of 4 widths count as three of 8/3
    return sides(cost.step(3, llm_c.LENGTH), "float32", ("apus", lambda: llm_c.ours(options)),
                 ("llm.c", lambda: llm_c.peer(options)) if options.llm_c else None)


def tokenize(options):
    """Rates are bytes of text per second."""
    path = options.work / f"text-{options.megabytes}.txt"
    if not path.exists():
        text = b"".join(part.read_bytes() for part in sorted((options.data / "text").glob("*.txt")))
        size = options.megabytes * 1_000_000
        path.write_bytes((text * (size // len(text) + 1))[:size].decode(errors="ignore").encode())
    return sides(0, None, ("apus", lambda: ours.tokenize_file(options, path)), peer(options, "tokenizers", "peer_tokenize.py", "--file", path),
                 ("apus, dataset to cache, all threads", lambda: ours.encode_dataset(options, path)))


def growth(options):
    """Rows of several lengths, as many tokens a step: FLOPs for each token grow by attention alone."""
    tokens = max(options.lengths)
    measure = lambda length, rows: ours.fine_tune(options, "lora", options.dtype, f"stages.train.batch_size={rows}",
                                                  f"stages.train.dataset.max_length={length}", steps=2)
    return [Side(f"{rows} × {length}", lambda length=length, rows=rows: measure(length, rows), options.cost.step(2, length), options.dtype)
            for length in options.lengths for rows in sorted({1, tokens // length})]


def rows(options):
    """A dataset of few rows and one of many: what they cost in memory that belongs to no file, and before the first step, when they are
    seen for the first time and when they lie in the cache."""
    def measure(count, cached):
        path = options.work / f"rows-{count}.jsonl"
        if not path.exists():
            with path.open("w") as file:
                file.writelines(f'{{"input_ids": [{i % 999}, {i % 998}, {i % 997}, {i % 991}]}}\n' for i in range(count))
        its = copy.copy(options)
        its.cache = options.work / f"rows-{count}-cache"
        if not cached:
            shutil.rmtree(its.cache, ignore_errors=True)
        return ours.train(its, "rows", options.dtype, f"stages.train.dataset.path={path}", no_files=True)
    return [Side(f"{count} rows, {state}", lambda count=count, state=state: measure(count, state == "cached"))
            for state in ("new", "cached") for count in options.rows]


FLOATS = ("float32", "bfloat16")
JOBS = {full: FLOATS, lora: FLOATS, dpo: FLOATS, generate: FLOATS, prefill: (*FLOATS, "q8_0", "q4_0"), decode: (*FLOATS, "q8_0", "q4_0"),
        batch: (*FLOATS, "q8_0", "q4_0"), llmc: ("float32",), tokenize: ("float32",), growth: FLOATS,
        rows: ("float32",)}


def spread(values, scale=1.0, digits=1):
    values = [value / scale for value in values]
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def table(job, done, peaks):
    """Markdown. The first side's figure stands against each other's: how many times its rate, what part of its memory."""
    unit, scale = ("MB/s", 1e6) if job is tokenize else ("tokens/s", 1.0)
    lines = [f"| | {unit} | GFLOP/s or GB/s | of peak | peak GB | ready s | {done[0].name} is | memory |", "|---|---|---|---|---|---|---|---|"]
    first = done[0]
    for side in done:
        if not side.rounds:
            lines.append(f"| {side.name} | failed: {side.error} | | | | | | |")
            continue
        rate = side.work * side.middle("rate") / 1e9
        share = f"{100 * rate / peaks[side.peak]:.0f} %" if rate and peaks and peaks.get(side.peak) else "–"
        against = [f"{first.middle(key) / side.middle(key):.2f} ×" if first.rounds else "–" for key in ("rate", "memory")]
        lines.append(f"| {side.name} | {spread([result['rate'] for result in side.rounds], scale)} | {f'{rate:.1f}' if rate else '–'} | {share} | "
                     f"{side.middle('memory') / 1e9:.2f} | {side.middle('ready'):.2f} | {against[0]} | {against[1]} |")
    counts = {side.name: side.rounds[0]["counts"] for side in done if side.rounds}
    if job in (full, lora, dpo, llmc) and len(set(map(tuple, counts.values()))) > 1:
        lines.append(f"\nThe sides did not train on the same tokens: {counts}")
    return "\n".join(lines)


def recalled(options, job, dtype, side):
    """A peer's rounds of an earlier run, while developing."""
    return options.known.get(f"{job.__name__} {dtype}", {}).get(side.name) if side.name != "apus" else None


def measure(options, job, dtype):
    """Every side in turn, round after round; and the peaks of the machine at the same time."""
    options.dtype = dtype
    peaks = json.loads(run(options, [options.peak, options.threads])[0]) if options.peak.exists() else None
    done = [side for side in job(options) if not options.only or side.name in ("apus", *options.only)]
    for side in done:
        side.rounds = recalled(options, job, dtype, side) or []
    missing = [side for side in done if not side.rounds]
    for _ in range(options.rounds):
        for side in missing:
            side.run()
    said = ", ".join(f"{name} {value}" for name, value in peaks.items() if name != "threads") if peaks else "not measured"
    section = (f"### {job.__name__}, {dtype}\n\n{table(job, done, peaks)}\n\n{options.rounds} rounds of {options.steps} steps; peaks measured with it "
               f"(GFLOP/s, GB/s): {said}.\n")
    print(section, flush=True)
    return section, {side.name: side.rounds for side in done}


def start_time(options):
    return f"`apus --help`: {spread(ours.help_time(options), 1e-3)} ms\n"


def text_of(*command):
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=HERE).stdout.strip()


def heading():
    commit = text_of("git", "rev-parse", "--short", "HEAD") + ("+" if text_of("git", "status", "--porcelain", "--untracked-files=no") else "")
    return f"## {datetime.date.today()}, apus {commit}\n"


def about(options):
    """The machine, the versions and the command: what a figure means nothing without."""
    model = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "?")
    memory = int(Path("/proc/meminfo").read_text().split()[1]) / 1e6
    peers = [text_of(options.python, "-c", VERSIONS)] if options.python else []
    if options.llama_cpp:
        peers.append(f"llama.cpp {llama_cpp.version(options)}")
    if options.llm_c:
        peers.append("llm.c")
    return f"{model}, {options.threads} threads, {memory:.0f} GB; {options.hf.name}; {'; '.join(peers) or 'no peers'}.\n"


def append(path, options, sections):
    """Behind the last heading when it is the same day's and commit's, so that jobs may be run one by one."""
    text = path.read_text() if path.exists() else "# Measured\n"
    entry = "" if text.rfind(heading()) > max(0, text.rfind("\n## ")) else f"\n{heading()}\n{about(options)}"
    path.write_text(text + entry + "\n" + "\n".join(sections))


def arguments():
    names = ["start", *(job.__name__ for job in JOBS)]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--apus", type=Path, required=True)
    parser.add_argument("--hf", type=Path, required=True)
    parser.add_argument("--model", type=Path, help="default HF_FOLDER")
    parser.add_argument("--python", type=Path)
    parser.add_argument("--llama-cpp", type=Path)
    parser.add_argument("--llm-c", type=Path)
    parser.add_argument("--peak", type=Path, help="default bench_peak beside the command")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--jobs", nargs="+", choices=names, default=names)
    parser.add_argument("--only", nargs="+", help="of the peers, those with these names")
    parser.add_argument("--dtypes", nargs="+", choices=(*FLOATS, "q8_0", "q4_0"), default=["float32", "bfloat16", "q8_0", "q4_0"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 512, 1024, 2048, 4096], help="of rows, for growth")
    parser.add_argument("--rows", type=int, nargs=2, default=[10**5, 10**7], help="of the two datasets, for rows")
    parser.add_argument("--megabytes", type=int, default=100, help="of text, for tokenize")
    parser.add_argument("--work", type=Path, help="a folder that keeps GGUF files and the token cache from run to run")
    parser.add_argument("--append", type=Path, help="add a dated section to this file (RESULTS.md)")
    parser.add_argument("--json", type=Path, help="write every figure here")
    parser.add_argument("--peers-from", type=Path, help="the peers' figures of an earlier --json: to develop with, never to report")
    options = parser.parse_args()
    if options.append and options.peers_from:
        parser.error("--append reports what one run measured on every side: leave --peers-from out")
    options.model = options.model or options.hf
    options.peak = options.peak or options.apus.parent / "bench_peak"
    options.cost = Cost(json.loads((options.hf / "config.json").read_text()))
    options.known = json.loads(options.peers_from.read_text()) if options.peers_from else {}
    return options


def gguf(options):
    """The weights in options.dtype, exported once."""
    path = options.work / f"model-{options.dtype}.gguf"
    if not path.exists():
        run(options, [options.apus, "export", options.hf, "--format", "gguf", "--dtype", options.dtype, "--out", path])
    return path


def main():
    options = arguments()
    with tempfile.TemporaryDirectory() as folder:
        options.work = options.work or Path(folder)
        options.work.mkdir(parents=True, exist_ok=True)
        options.cache, options.weights = options.work / "cache", lambda: gguf(options)
        sections, figures = [start_time(options)] if "start" in options.jobs else [], {}
        print("\n".join([heading(), about(options), *sections]), flush=True)
        for job, dtypes in JOBS.items():
            for dtype in dtypes:
                if job.__name__ in options.jobs and dtype in options.dtypes:
                    section, figures[f"{job.__name__} {dtype}"] = measure(options, job, dtype)
                    sections.append(section)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    if options.append:
        append(options.append, options, sections)
    return 0


if __name__ == "__main__":
    sys.exit(main())
