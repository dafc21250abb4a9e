"""Times products of a linear alone, backend cpu's and oneDNN's in turn, at the shapes of SmolLM2-135M, each call with weights that no
cache holds; prints a table in Markdown.

    cmake --build build --target bench_products
    VENV/bin/pip install onednn-cpu-gomp onednn-devel-cpu-gomp
    cc -std=gnu11 -O2 -IVENV/include tools/bench/products_onednn.c -o bench_products_onednn -LVENV/lib -ldnnl -Wl,-rpath,VENV/lib
    python3 tools/bench/products.py --apus build --onednn bench_products_onednn --python VENV/bin/python

Sides that are not given are left out. "float": every operand float32, as in training; "packed": W laid out ahead, as in answering.
A cell is the median of the rounds, in GFLOP/s (of up to 16 rows: GB/s of weights read); the last columns are our rate over each of
theirs. oneDNN's "ready" (all its operands converted ahead) says what conversions cost it.
"""

import argparse
import statistics
import subprocess
from pathlib import Path

from process import spawn

SHAPES = "576x576 192x576 1536x576 576x1536 49152x576".split()
MANY, FEW = (512, 2048), (1, 4, 16, 512)


def requests(options):
    """(op, m, n, k, dtype, operands)"""
    shapes = [tuple(map(int, shape.split("x"))) for shape in options.shapes]
    for dtype in options.dtypes:
        if "float" in options.operands:
            yield from ((op, m, n, k, dtype, "float") for m in options.rows or MANY for n, k in shapes for op in ("forward", "dx", "dw"))
        if "packed" in options.operands:
            yield from (("forward", m, n, k, dtype, "packed") for m in options.rows or FEW for n, k in shapes)


def sides(options):
    """name: (command, request -> request or None)"""
    budget = str(options.seconds)
    same = lambda operands: operands
    found = {}
    if options.apus:
        found["apus"] = ([options.apus / "bench_products", options.apus / "plugins/apus_backend_cpu.so", options.threads, budget], same)
    if options.onednn:
        found["oneDNN"] = ([options.onednn.resolve(), budget], same)
        found["oneDNN, ready"] = ([options.onednn.resolve(), budget], lambda operands: "ready" if operands == "float" else None)
    if options.python:
        found["torch's"] = ([options.python, Path(__file__).with_name("peer_products.py"), budget], same)
    return found


def ask(process, request):
    process.stdin.write(" ".join(map(str, request)) + "\n")
    process.stdin.flush()
    answer = process.stdout.readline().strip()
    if not answer:
        raise SystemExit(f"products: a side ended at {request}")
    return None if answer == "no" else float(answer)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--apus", type=Path, help="the build folder")
    parser.add_argument("--onednn", type=Path, help="products_onednn.c, built")
    parser.add_argument("--python", help="one that has torch")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.1, help="of each request, about")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--operands", nargs="+", default=["float", "packed"])
    parser.add_argument("--shapes", nargs="+", default=SHAPES, metavar="NxK", help="of W; default: SmolLM2-135M's")
    parser.add_argument("--rows", nargs="+", type=int, help="m; default: 512 and 2048, and packed 1, 4, 16 and 512")
    parser.add_argument("--cache", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    running = {name: (spawn(options, command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True), operands)
               for name, (command, operands) in sides(options).items()}
    names = list(running)
    print("| product | m × n × k | dtype | " + " | ".join(names) + " | " + " | ".join(f"over {name}" for name in names[1:]) + " |")
    print("|" + "---|" * (2 + 2 * len(names)))
    try:
        for process, _ in running.values():  # starts its threads
            ask(process, ("forward", 512, 576, 576, "float32", "float"))
        for request in requests(options):
            op, m, n, k, dtype, operands = request
            seconds = {name: [] for name in names}
            for _ in range(options.rounds):
                for name, (process, wanted) in running.items():
                    wish = wanted(operands)
                    answer = ask(process, (*request[:-1], wish)) if wish else None
                    if answer is not None:
                        seconds[name].append(answer)
            work = 2e-9 * m * n * k if m > 16 else 1e-9 * n * k * (2 if dtype == "bfloat16" else 4)
            rates = {name: [work / s for s in seconds[name]] for name in names}
            cells = [f"{statistics.median(r):.0f} ({min(r):.0f}–{max(r):.0f})" if r else "–" for r in rates.values()]
            ours = statistics.median(rates[names[0]])
            over = [f"{ours / statistics.median(rates[name]):.2f} ×" if rates[name] else "–" for name in names[1:]]
            print(f"| {op}, {operands} | {m} × {n} × {k} | {dtype} | " + " | ".join(cells + over) + " |", flush=True)
    finally:
        for process, _ in running.values():
            process.stdin.close()
            process.wait()


if __name__ == "__main__":
    main()
