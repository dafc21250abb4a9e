"""A PEFT adapter on the tiny llama: tests/golden/lora/, the adapter folder and golden.safetensors beside it."""

import shutil

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from common import GOLDEN
from exact import exact, next_token_loss
from models import OUT as MODELS, reload

OUT = GOLDEN / "lora"


def make_adapter():
    shutil.rmtree(OUT, ignore_errors=True)
    model = AutoModelForCausalLM.from_pretrained(MODELS / "llama", dtype=torch.float32)
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"]))
    generator = torch.Generator().manual_seed(4)
    for name, weight in sorted(model.named_parameters()):
        if "lora_" in name:
            weight.data.copy_(torch.randn(weight.shape, generator=generator) * 0.2)
    model.peft_config["default"].base_model_name_or_path = "../models/llama"
    model.save_pretrained(OUT)
    (OUT / "README.md").unlink()
    for path in OUT.iterdir():
        path.chmod(0o644)


def main():
    torch.set_num_threads(1)
    make_adapter()
    base = load_file(MODELS / "llama" / "golden.safetensors")
    ids = base["input_ids"].long()
    model = PeftModel.from_pretrained(reload(MODELS / "llama"), OUT, is_trainable=True).double()
    with exact():
        logits = model(ids[None], use_cache=False).logits[0]
        loss = next_token_loss(logits, ids).mean()
        loss.backward()
        gradients = {name.replace(".default.", "."): weight.grad for name, weight in model.named_parameters()
                     if weight.requires_grad}
        merged = model.merge_and_unload()(ids[None], use_cache=False).logits[0]
    assert logits.dtype == torch.float64 and (logits - base["logits"]).abs().max() > 0.1
    assert (logits - merged).abs().max() < 1e-12
    with safe_open(OUT / "adapter_model.safetensors", "pt") as file:
        assert set(file.keys()) == set(gradients)
    golden = {"logits": logits, "merged_logits": merged, "loss": loss[None],
              **{f"grad.{name}": gradient for name, gradient in gradients.items()}}
    golden = {name: value.detach().float().contiguous() for name, value in golden.items()}
    save_file({"input_ids": base["input_ids"], **golden}, OUT / "golden.safetensors")
    (OUT / "golden.safetensors").chmod(0o644)
    print({name: tuple(value.shape) for name, value in golden.items()}, loss.item())


if __name__ == "__main__":
    main()
