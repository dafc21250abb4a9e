"""apus beside the reference values of smollm2.py: 20 steps of LoRA fine-tuning and of LoRA DPO, log-probabilities, an answer.

    compare.py MODELS [--apus build/apus] [--threads 2] [--data ../shared/data]

Runs smollm2.yaml in MODELS/run (stages that are done are reused), prints each step and the largest differences, and exits with 1
when one is out of bounds. Needs nothing but Python; the run takes a few minutes.
"""

import argparse
import json
import math
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden" / "smollm2"


class Verdicts:
    """Largest differences beside what is allowed."""

    def __init__(self):
        self.failed = 0

    def __call__(self, what, difference, bound):
        good = difference <= bound
        self.failed += not good
        print(f"{'ok  ' if good else 'FAIL'} {what}: {difference:.3g} (bound {bound:g})")


def apus(arguments, *words):
    result = subprocess.run([arguments.apus, *map(str, words)], stdout=subprocess.PIPE, check=True)
    return json.loads(result.stdout)


def events(run, stage):
    lines = (json.loads(line) for line in (run / stage / "events.jsonl").read_text().splitlines())
    return [event for event in lines if "loss" in event]


def steps(run, stage):
    """(ours, theirs) of each step."""
    ours, theirs = events(run, stage), json.loads((GOLDEN / f"{stage}.json").read_text())["steps"]
    assert [event["step"] for event in ours] == [step["step"] for step in theirs], f"{stage}: other steps than the reference's"
    return list(zip(ours, theirs))


def compare_sft(run, verdict):
    pairs = steps(run, "sft")
    for ours, theirs in pairs:
        print(f"sft {ours['step']:2}: loss {ours['loss']:.6f} {theirs['loss']:.6f}  grad_norm {ours['grad_norm']:.6f} {theirs['grad_norm']:.6f}")
    verdict("sft, tokens of a step", max(abs(o["tokens"] - t["tokens"]) for o, t in pairs), 0)
    verdict("sft, loss", max(abs(o["loss"] - t["loss"]) for o, t in pairs), 1e-3)
    verdict("sft, grad_norm, relative", max(abs(o["grad_norm"] / t["grad_norm"] - 1) for o, t in pairs), 0.01)


def compare_dpo(run, verdict):
    pairs = steps(run, "dpo")
    for ours, theirs in pairs:
        print(f"dpo {ours['step']:2}: loss {ours['loss']:.6f} {theirs['loss']:.6f}  grad_norm {ours['grad_norm']:.5f} {theirs['grad_norm']:.5f}  "
              f"logps {ours['logps/chosen']:.4f} {theirs['logps/chosen']:.4f} / {ours['logps/rejected']:.4f} {theirs['logps/rejected']:.4f}")
    verdict("dpo, first loss - ln 2", abs(pairs[0][0]["loss"] - math.log(2)), 1e-6)
    verdict("dpo, loss", max(abs(o["loss"] - t["loss"]) for o, t in pairs), 1e-3)
    verdict("dpo, grad_norm, relative", max(abs(o["grad_norm"] / t["grad_norm"] - 1) for o, t in pairs), 0.01)
    for name, bound in (("logps/chosen", 0.05), ("logps/rejected", 0.05), ("rewards/chosen", 0.005), ("rewards/rejected", 0.005),
                        ("rewards/margins", 0.005), ("rewards/accuracies", 0.0)):
        verdict(f"dpo, {name}", max(abs(o[name] - t[name]) for o, t in pairs), bound)


def compare_scores(arguments, verdict):
    golden, model = json.loads((GOLDEN / "score.json").read_text()), arguments.models / "smollm2-f32"
    for k, text in enumerate(golden["texts"]):
        got = apus(arguments, "score", model, "--text", text["text"], "--threads", arguments.threads)
        assert got["ids"] == text["ids"], f"text {k}: other ids than the reference's"
        verdict(f"score, text {k}", max(abs(a - b) for a, b in zip(got["logprobs"], text["logprobs"], strict=True)), 2e-3)
    want, messages = golden["generate"], arguments.models / "run" / "messages.json"
    messages.write_text(json.dumps(want["messages"]))
    got = apus(arguments, "generate", model, "--messages", messages, "--max-tokens", 32, "--json", "--threads", arguments.threads)
    assert got["prompt_ids"] == want["prompt_ids"] and got["ids"] == want["ids"] and got["text"] == want["text"], f"another answer: {got}"
    verdict("generate, log-probabilities", max(abs(a - b) for a, b in zip(got["logprobs"], want["logprobs"], strict=True)), 2e-3)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, metavar="MODELS")
    parser.add_argument("--apus", default=ROOT / "build" / "apus", type=Path)
    parser.add_argument("--threads", default=2, type=int)
    parser.add_argument("--data", default=ROOT.parent / "shared" / "data", type=Path)
    arguments = parser.parse_args()
    environment = {**os.environ, "MODELS": str(arguments.models.resolve()), "THREADS": str(arguments.threads), "DATA": str(arguments.data)}
    subprocess.run([arguments.apus, "run", ROOT / "tools/golden/smollm2.yaml"], env=environment, check=True)
    verdict, run = Verdicts(), arguments.models / "run"
    compare_sft(run, verdict)
    compare_dpo(run, verdict)
    compare_scores(arguments, verdict)
    return 1 if verdict.failed else 0


if __name__ == "__main__":
    sys.exit(main())
