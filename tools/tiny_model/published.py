"""The published format: linear weights in FP8 E4M3 with 128×128 block scales, and its names of the tensors.

`load` reads a folder into a training state, `save` writes one; each is the other's inverse, but for rounding.
As DeepSeek-V3 ships them, embeddings, norms, router and eh_proj stay BF16 and the router's correction bias float32; the MTP
module is layer `num_hidden_layers`, and experts, which training keeps stacked, stand one by one.
"""
from __future__ import annotations

import json
import os

import torch
from safetensors.torch import load_file, save_file

from model import CONFIG

BLOCK, E4M3_MAX = 128, 448.0
KEEP_BF16 = ("embed_tokens", "lm_head", "shared_head.head", "norm", "mlp.gate.weight", "eh_proj")
MTP = f"model.layers.{CONFIG['num_hidden_layers']}."


def quantise(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(O, I) -> E4M3 (O, I) and float32 scales (O / 128, I / 128), both rounded up."""
    rows, cols = (-(-n // BLOCK) for n in weight.shape)
    padded = torch.zeros(rows * BLOCK, cols * BLOCK)
    padded[:weight.shape[0], :weight.shape[1]] = weight
    blocks = padded.view(rows, BLOCK, cols, BLOCK)
    scale = blocks.abs().amax((1, 3)).clamp_min(1e-12) / E4M3_MAX
    q = (blocks / scale[:, None, :, None]).reshape(rows * BLOCK, cols * BLOCK)[:weight.shape[0], :weight.shape[1]]
    return q.to(torch.float8_e4m3fn).contiguous(), scale.contiguous()


def dequantise(q: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """The inverse of quantise, in float32."""
    spread = scale.repeat_interleave(BLOCK, 0)[:q.shape[0]].repeat_interleave(BLOCK, 1)[:, :q.shape[1]]
    return (q.float() * spread).contiguous()


def published_names(state: dict) -> dict:
    """Training names -> published names, experts unstacked."""
    out = {}
    for name, t in state.items():
        if name.startswith("mtp."):
            name = MTP + name[4:]
        elif not name.startswith("lm_head"):
            name = "model." + name
        if name.endswith("mlp.gate_up"):
            for e, (gate, up) in enumerate(x.chunk(2) for x in t):
                base = name.replace("gate_up", f"experts.{e}.")
                out[base + "gate_proj.weight"], out[base + "up_proj.weight"] = gate, up
        elif name.endswith("mlp.down"):
            for e, x in enumerate(t):
                out[name.replace("mlp.down", f"mlp.experts.{e}.down_proj.weight")] = x
        else:
            out[name] = t
    out[MTP + "embed_tokens.weight"] = state["embed_tokens.weight"]
    out[MTP + "shared_head.head.weight"] = state["lm_head.weight"]
    return out


def training_names(tensors: dict) -> dict:
    """Published names -> training names, experts stacked: the inverse of published_names."""
    out, experts = {}, range(CONFIG["n_routed_experts"])
    for name, t in tensors.items():
        if name in (MTP + "embed_tokens.weight", MTP + "shared_head.head.weight"):
            continue
        short = name.replace(MTP, "mtp.").removeprefix("model.")
        if ".experts." not in name:
            out[short] = t
        elif name.endswith(".experts.0.down_proj.weight"):
            out[short.replace("experts.0.down_proj.weight", "down")] = torch.stack(
                [tensors[name.replace("experts.0.", f"experts.{e}.")] for e in experts])
        elif name.endswith(".experts.0.gate_proj.weight"):
            out[short.replace("experts.0.gate_proj.weight", "gate_up")] = torch.stack(
                [torch.cat([tensors[name.replace("experts.0.gate", f"experts.{e}.{part}")] for part in ("gate", "up")])
                 for e in experts])
    return out


def load_float32(folder: str) -> dict:
    """The tensors of a folder under their published names, FP8 blocks expanded."""
    tensors = load_file(f"{folder}/model.safetensors")
    return {name: dequantise(t, tensors[name + "_scale_inv"]) if name + "_scale_inv" in tensors else t.float()
            for name, t in tensors.items() if not name.endswith("_scale_inv")}


def load(folder: str) -> dict:
    return training_names(load_float32(folder))


def save(state: dict, folder: str) -> None:
    os.makedirs(folder, exist_ok=True)
    tensors = {}
    for name, t in published_names(state).items():
        t = t.detach().float()
        if name.endswith("e_score_correction_bias"):
            tensors[name] = t.clone()
        elif t.dim() == 2 and not any(k in name for k in KEEP_BF16):
            tensors[name], tensors[name + "_scale_inv"] = quantise(t)
        else:
            tensors[name] = t.to(torch.bfloat16).clone()
    save_file(tensors, f"{folder}/model.safetensors", metadata={"format": "pt"})
    config = CONFIG | {"quantization_config": {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8",
                                               "weight_block_size": [BLOCK, BLOCK]}}
    json.dump(config, open(f"{folder}/config.json", "w"), indent=2)
    json.dump({"bos_token_id": CONFIG["bos_token_id"], "eos_token_id": CONFIG["eos_token_id"], "do_sample": True,
               "temperature": 0.6, "top_p": 0.95}, open(f"{folder}/generation_config.json", "w"), indent=2)
