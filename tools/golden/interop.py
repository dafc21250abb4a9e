"""What apus writes, read by the others: its adapter by PEFT, the merged folder by transformers.

    interop.py MODELS [--apus build/apus] [--threads 2]

After compare.py, whose run in MODELS/run made the files. Compares log-probabilities of the texts of score.json, ids and the rendered
template; prints the largest differences and exits with 1 when one is out of bounds.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from compare import GOLDEN, ROOT, Verdicts, apus

BOUND = 1e-3


@torch.no_grad()
def logprobs(model, ids):
    rows = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    return rows.gather(1, torch.tensor(ids[1:])[:, None])[:, 0].tolist()


def compare(verdict, what, arguments, model, tokenizer, *words):
    """words: the model as apus is told it."""
    worst = 0.0
    for text in json.loads((GOLDEN / "score.json").read_text())["texts"]:
        got = apus(arguments, "score", *words, "--text", text["text"], "--threads", arguments.threads)
        assert got["ids"] == tokenizer.encode(text["text"], add_special_tokens=False), f"{what}: other ids"
        worst = max(worst, max(abs(a - b) for a, b in zip(got["logprobs"], logprobs(model, got["ids"]), strict=True)))
    verdict(what, worst, BOUND)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, metavar="MODELS")
    parser.add_argument("--apus", default=ROOT / "build" / "apus", type=Path)
    parser.add_argument("--threads", default=2, type=int)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    verdict, run, folder = Verdicts(), arguments.models / "run", arguments.models / "smollm2-f32"

    tokenizer = AutoTokenizer.from_pretrained(folder)
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for stage in ("sft", "dpo"):
        adapted = PeftModel.from_pretrained(base, run / stage / "model", adapter_name=stage)
        compare(verdict, f"PEFT reads the adapter of {stage}", arguments, adapted, tokenizer, folder, "--adapter", run / stage / "model")
        base = adapted.unload()

    written = AutoModelForCausalLM.from_pretrained(run / "merged" / "model", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(run / "merged" / "model")
    compare(verdict, "transformers reads the merged folder", arguments, written, tokenizer, f"{run}:sft")
    want = json.loads((GOLDEN / "score.json").read_text())["generate"]
    rendered = tokenizer.apply_chat_template(want["messages"], add_generation_prompt=True, tokenize=False)
    assert rendered == want["rendered"], "the exported chat template renders otherwise"
    compare(verdict, "apus reads its own GGUF as it reads the merged folder", arguments, written, tokenizer, run / "gguf" / "model.gguf")
    return 1 if verdict.failed else 0


if __name__ == "__main__":
    sys.exit(main())
