"""Values of the built-in ops as PyTorch gives them in float64: tests/golden/ops.json, read by tests/core/graph/test_ops.c.

Both sides compute their inputs: element k of a tensor is sin(3 k + seed).
"""

import torch
import torch.nn.functional as F
from common import GOLDEN, write_json

torch.set_default_dtype(torch.float64)


def wave(*shape, seed):
    n = torch.Size(shape).numel()
    return torch.sin(3.0 * torch.arange(n, dtype=torch.float64) + seed).reshape(shape)


def rotate_half(x):
    half = x.shape[-1] // 2
    return torch.cat((-x[..., half:], x[..., :half]), dim=-1)


def rope(x, positions, frequencies, head_dim):
    angles = positions[:, None].double() * frequencies[None]
    cos = torch.cat((angles, angles), -1).cos()[:, None]
    sin = torch.cat((angles, angles), -1).sin()[:, None]
    heads = x.reshape(x.shape[0], -1, head_dim)
    return (heads * cos + rotate_half(heads) * sin).reshape(x.shape)


def attention(q, k, v, mask, heads, kv_heads, dim, scale, softcap=0.0):
    q = q.reshape(-1, heads, dim).transpose(0, 1)
    k = k.reshape(-1, kv_heads, dim).transpose(0, 1).repeat_interleave(heads // kv_heads, 0)
    v = v.reshape(-1, kv_heads, dim).transpose(0, 1).repeat_interleave(heads // kv_heads, 0)
    scores = q @ k.transpose(1, 2) * scale
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~mask, float("-inf"))
    out = torch.softmax(scores, -1) @ v
    return out.transpose(0, 1).reshape(-1, heads * dim), torch.logsumexp(scores, -1).T


def main():
    x, y = 3.0 * wave(5, 8, seed=0.1), wave(5, 8, seed=0.2)
    w, b, dy = wave(8, seed=0.3), wave(8, seed=0.4), wave(5, 8, seed=0.5)
    out = {
        "silu": F.silu(x),
        "gelu": F.gelu(x),
        "gelu_tanh": F.gelu(x, approximate="tanh"),
        "softplus": F.softplus(x, threshold=1e9),
        "log_sigmoid": F.logsigmoid(x),
        "swiglu": F.silu(x) * y,
        "expm1": torch.expm1(x),
        "sign": torch.sign(x),
        "rms_norm": F.rms_norm(x, (8,), w, 1e-5),
        "rms_norm_groups": F.rms_norm(x.reshape(5, 2, 4), (4,), 1.0 + wave(4, seed=0.3), 1e-5),
        "layer_norm": F.layer_norm(x, (8,), w, b, 1e-5),
        "sum_rows": x.sum(0),
        "sum_squares": (x * x).sum().reshape(1),
    }
    for name, function in {
        "silu": F.silu,
        "gelu": F.gelu,
        "gelu_tanh": lambda t: F.gelu(t, approximate="tanh"),
    }.items():
        t = x.clone().requires_grad_()
        function(t).backward(dy)
        out[f"{name}_grad"] = t.grad
    t, tw, tb = (a.clone().requires_grad_() for a in (x, w, b))
    F.layer_norm(t, (8,), tw, tb, 1e-5).backward(dy)
    out |= {"layer_norm_dx": t.grad, "layer_norm_dw": tw.grad, "layer_norm_db": tb.grad}
    logits = 2.0 * torch.tanh(0.5 * x @ wave(6, 8, seed=0.6).T / 2.0)
    out["token_logprob"] = torch.log_softmax(logits, -1)[torch.arange(5), torch.tensor([0, 5, 3, 3, 1])]

    positions, exponents = torch.tensor([0, 1, 2, 3, 70]), torch.arange(4) / 4.0
    x = wave(5, 16, seed=0.1)
    out["rope"] = rope(x, positions, 100.0**-exponents, 8)
    base = 100.0 * (2.0 * 71 / 32 - 1.0) ** (8 / 6)  # transformers, _compute_dynamic_ntk_parameters
    out["rope_dynamic"] = rope(x, positions, base**-exponents, 8)

    q, k, v = wave(6, 16, seed=0.1), wave(6, 8, seed=0.2), wave(6, 8, seed=0.3)
    i, j = torch.arange(6)[:, None], torch.arange(6)[None]
    mask = (j <= i) & ((i < 2) == (j < 2))
    out["attention"], out["attention_lse"] = attention(q, k, v, mask, 4, 2, 4, 0.5)
    out["attention_window_softcap"], _ = attention(q, k, v, mask & (i - j < 2), 4, 2, 4, 0.5, 1.5)
    write_json(GOLDEN / "ops.json", {key: value.flatten().tolist() for key, value in out.items()}, digits=17)


if __name__ == "__main__":
    main()
