"""Golden values of block encodings -> tests/golden/blocks.bin, by the quants module of the package gguf (llama.cpp).

Records, little-endian: i32 direction (0 read, 1 write), i32 apus dtype, i32 elements, i32 bytes, bytes of blocks, float32 values.
Usage: python tools/golden/blocks.py
"""
import pathlib
import struct

import numpy as np
from gguf import GGMLQuantizationType as T
from gguf import quants

DTYPES = {
    T.F16: 3, T.BF16: 4, T.Q4_0: 32, T.Q4_1: 33, T.Q5_0: 34, T.Q5_1: 35, T.Q8_0: 36, T.IQ4_NL: 37,
    T.Q2_K: 48, T.Q3_K: 49, T.Q4_K: 50, T.Q5_K: 51, T.Q6_K: 52,
}
# Offsets of the f16 scales in each block: random bytes there would make NaN and infinity.
HALVES = {
    T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q8_0: [0], T.IQ4_NL: [0],
    T.Q2_K: [80, 82], T.Q3_K: [108], T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208],
}
rng = np.random.default_rng(20240601)
out = bytearray()


def record(direction, dtype, n, blocks, values):
    out.extend(struct.pack("<4i", direction, DTYPES[dtype], n, blocks.nbytes))
    out.extend(blocks.tobytes())
    out.extend(np.ascontiguousarray(values, dtype="<f4").tobytes())


for dtype, offsets in HALVES.items():
    size, n_bytes = {t: quants.GGML_QUANT_SIZES[t] for t in HALVES}[dtype]
    count = 256 // size
    blocks = rng.integers(0, 256, (count, n_bytes), dtype=np.uint8)
    for o in offsets:
        d = rng.normal(0, 0.01, count).astype(np.float16)
        d[0] = np.float16(6e-7)  # a subnormal scale
        blocks[:, o:o + 2] = d.view(np.uint8).reshape(count, 2)
    record(0, dtype, 256, blocks, quants.dequantize(blocks.reshape(1, -1), dtype))

edges = np.array([0.0, -0.0, 65504, 65519.99, 65520, 1e-8, 2.9802322e-8, 2.98023259e-8, 5.9604645e-8, 6.0975552e-5, 6.1035156e-5,
                  1.0004883, 1.0014648, np.inf, -np.inf, 3.3895314e38], dtype=np.float32)
x = np.concatenate([edges, rng.normal(0, 1, 240).astype(np.float32)])
with np.errstate(over="ignore"):
    record(1, T.F16, 256, x.astype(np.float16), x)
    record(0, T.F16, 256, x.astype(np.float16), x.astype(np.float16).astype(np.float32))
b = quants.quantize(x, T.BF16)
record(1, T.BF16, 256, b, x)
record(0, T.BF16, 256, b, quants.dequantize(b, T.BF16))

x = rng.normal(0, 1, 1024).astype(np.float32)
x[:32] = 0
x[32:64] = np.round(x[32:64] * 4) / 4  # ties
x[64:96] *= 1e-6
for dtype in (T.Q8_0, T.Q4_0):
    record(1, dtype, 1024, quants.quantize(x.reshape(1, -1), dtype), x)

path = pathlib.Path(__file__).parents[2] / "tests/golden/blocks.bin"
path.write_bytes(out)
print(path, len(out))
