"""llm.c's side of bench.py: its train_gpt2 on a GPT-2 124M with random weights, B 4, T 64, float32; and the same for apus.

Give the folder that holds the program. It reads fixed file names, which are written here into a folder of their own.
"""

import array
import json
import os
import random
import re
import subprocess
import tempfile
import time
from pathlib import Path

from ours import result, tokenize, train
from process import Failed, spawn

VOCAB, PADDED, POSITIONS, LAYERS, HEADS, WIDTH = 50257, 50304, 1024, 12, 12, 768
ROWS, LENGTH = 4, 64
CONFIG = f"{{vocab_size: {VOCAB}, n_positions: {POSITIONS}, n_layer: {LAYERS}, n_head: {HEADS}, n_embd: {WIDTH}}}"


def tokens(options):
    text = (options.data / "text/tinyshakespeare.txt").read_text()[:100_000]
    return json.loads(tokenize(options, text)[0])["ids"]


def header(magic, version, *rest):
    return array.array("i", [magic, version, *rest] + [0] * (254 - len(rest))).tobytes()


def write_model(path):
    """The tensors in llm.c's order: embeddings, then each kind for all layers, then the last norm."""
    noise = random.Random(0)
    block = array.array("f", (noise.gauss(0, 0.02) for _ in range(1 << 16)))
    normal, ones, zeros = block.tobytes(), array.array("f", [1.0] * WIDTH).tobytes(), bytes(4 * WIDTH)
    with path.open("wb") as out:
        out.write(header(20240326, 3, POSITIONS, VOCAB, LAYERS, HEADS, WIDTH, PADDED))

        def random_tensor(elements):
            while elements > 0:
                out.write(normal[:4 * elements])
                elements -= len(block)

        random_tensor(PADDED * WIDTH)
        random_tensor(POSITIONS * WIDTH)
        out.write(ones * LAYERS + zeros * LAYERS)
        for inputs, outputs in ((WIDTH, 3 * WIDTH), (WIDTH, WIDTH)):
            random_tensor(LAYERS * inputs * outputs)
            out.write(bytes(4 * LAYERS * outputs))
        out.write(ones * LAYERS + zeros * LAYERS)
        for inputs, outputs in ((WIDTH, 4 * WIDTH), (4 * WIDTH, WIDTH)):
            random_tensor(LAYERS * inputs * outputs)
            out.write(bytes(4 * LAYERS * outputs))
        out.write(ones + zeros)


def peer(options):
    ids = tokens(options)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        data = folder / "dev/data/tinyshakespeare"
        data.mkdir(parents=True)
        write_model(folder / "gpt2_124M.bin")
        for part in ("train", "val"):
            (data / f"tiny_shakespeare_{part}.bin").write_bytes(header(20240520, 1, len(ids)) + array.array("H", ids).tobytes())
        start, seconds, ready = time.monotonic(), [], None
        command = ["stdbuf", "-oL", (options.llm_c / "train_gpt2").resolve()]
        process = spawn(options, command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        for line in process.stdout:  # 40 steps and samples between them: more than is wanted
            if step := re.match(r"step \d+: train loss .* \(took ([\d.]+) ms\)", line):
                ready = ready or time.monotonic() - start
                seconds.append(float(step[1]) / 1000)
            if len(seconds) > options.steps:
                process.terminate()
                break
        _, _, usage = os.wait4(process.pid, 0)
        process.returncode = 0
    if len(seconds) <= options.steps:
        raise Failed("llm.c's train_gpt2 ended early")
    return result([ROWS * LENGTH] * options.steps, seconds[1:], ready - seconds[0], usage.ru_maxrss * 1024)


def ours(options):
    ids = tokens(options)
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.jsonl"
        with rows.open("w") as out:
            for start in range(0, len(ids) - LENGTH, LENGTH):
                out.write(json.dumps({"input_ids": ids[start:start + LENGTH]}) + "\n")
        return train(options, "full", "float32", f"stages.train.model={{arch: gpt2, config: {CONFIG}}}", f"stages.train.batch_size={ROWS}",
                     f"stages.train.dataset={{type: tokens, path: {rows}, max_length: {LENGTH}, shuffle: false}}")
