"""transformers in real float64.

Its models ask for float32 in places whatever their weights are (rope frequencies, norm statistics, softmax). Inside
`exact()` each such request gives float64, so that a golden value has one rounding: the cast at the end.
"""

import contextlib

import torch
from torch.overrides import TorchFunctionMode


class _Widen(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        widen = lambda value: torch.float64 if value is torch.float32 else value
        if function is torch.Tensor.float:
            return args[0].double()
        return function(*map(widen, args), **{key: widen(value) for key, value in (kwargs or {}).items()})


@contextlib.contextmanager
def exact():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _Widen():
            yield
    finally:
        torch.set_default_dtype(before)


def next_token_loss(logits, ids):
    """Cross entropy of each next token: float64 [T-1]."""
    return torch.nn.functional.cross_entropy(logits[:-1], ids[1:], reduction="none")
