"""PyTorch's side of products.py: the oneDNN that it carries. Requests and answers: products.h.

    peer_products.py SECONDS      threads: $OMP_NUM_THREADS

x, dy and W become bfloat16 by .to(), results float32 again; "packed" is what torch.compile makes of a frozen weight
(mkldnn._linear_pointwise), in float32 too, where torch.mm would call MKL.
"""

import statistics
import sys
import time

import torch

COLD_BYTES = 160 << 20


def calls(op, m, n, k, dtype, operands):
    """One product as a function of which W, and how many there are; None: it has none such."""
    kind = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    x, dy, w = torch.rand(m, k), torch.rand(m, n), torch.rand(n, k)
    copies = min(COLD_BYTES // (w.numel() * (4 if operands == "float" else kind.itemsize)) + 2, 512)
    if operands == "packed":
        if op != "forward":
            return None
        packed = [torch.ops.mkldnn._reorder_linear_weight(w.to(kind), m) for _ in range(copies)]
        linear = torch.ops.mkldnn._linear_pointwise
        return lambda i: linear(x.to(kind), packed[i], None, "none", [], "").float(), copies
    if operands == "ready":
        x, dy, w = x.to(kind), dy.to(kind), w.to(kind)
    if op == "dw":
        results = [torch.empty(n, k) for _ in range(copies)]
        return lambda i: results[i].copy_(torch.mm(dy.to(kind).T, x.to(kind))), copies
    ws = [w.clone() for _ in range(copies)]
    if op == "dx":
        return lambda i: torch.mm(dy.to(kind), ws[i].to(kind)).float(), copies
    return lambda i: torch.mm(x.to(kind), ws[i].to(kind).T).float(), copies


def median_seconds(call, copies, budget):
    call(copies - 1)
    seconds, begin = [], time.perf_counter()
    while len(seconds) < 5 or time.perf_counter() - begin < budget:
        start = time.perf_counter()
        call(len(seconds) % copies)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


@torch.no_grad()
def main():
    budget = float(sys.argv[1])
    print(next(line.strip() for line in torch.__config__.show().splitlines() if "MKL-DNN" in line), file=sys.stderr)
    for line in sys.stdin:
        op, m, n, k, dtype, operands = line.split()
        made = calls(op, int(m), int(n), int(k), dtype, operands)
        print("no" if made is None else f"{median_seconds(*made, budget):.9f}", flush=True)


if __name__ == "__main__":
    main()
