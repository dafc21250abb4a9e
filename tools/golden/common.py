"""What every golden script shares: how JSON is written, and the starting adapter both sides can compute."""

import json
import math
from pathlib import Path

import torch

GOLDEN = Path(__file__).resolve().parents[2] / "tests" / "golden"
DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
GGUF = "models/smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf"


def rounded(value, digits):
    """The same tree with every float cut to a number of significant digits."""
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError("a golden value is not finite")
        return float(f"{value:.{digits}g}")
    if isinstance(value, dict):
        return {key: rounded(item, digits) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(item, digits) for item in value]
    return value


def write_json(path, value, digits=9):
    """Writes one top-level key a line, so that a diff shows which part changed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f" {json.dumps(key)}: {json.dumps(item, separators=(',', ':'))}" for key, item in rounded(value, digits).items()]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


ADAPTER_FORMULA = (
    "Walk the adapter's tensors in order: layers 0..n-1; in each q_proj then v_proj; in each A [r, in] then B [out, r]; "
    "each row-major. With k = 1, 2, 3, ... counting all elements so far, value = amplitude * (((k * 2654435761) mod 2^32) "
    "/ 2^31 - 1) in float64, cast to float32; amplitude 0.03 for A and 0.02 for B."
)


def fill_adapter(model):
    """Sets the "default" LoRA adapter of a PEFT model to ADAPTER_FORMULA: B is not zero, so the adapter is not idle."""
    start = 1
    for layer in model.get_base_model().model.layers:
        for module in (layer.self_attn.q_proj, layer.self_attn.v_proj):
            for weight, amplitude in ((module.lora_A["default"].weight, 0.03), (module.lora_B["default"].weight, 0.02)):
                k = torch.arange(start, start + weight.numel(), dtype=torch.int64)
                start += weight.numel()
                value = amplitude * ((k * 2654435761 % 2**32).double() / 2**31 - 1)
                weight.data.copy_(value.reshape(weight.shape))
