"""Writes the trained state as a published-format checkpoint: `python export.py RUN OUT`.

Linear weights become FP8 E4M3 with 128×128 block scales (`weight_scale_inv`), as DeepSeek-V3 ships them; embeddings, norms,
router and eh_proj stay BF16, the router's correction bias float32. The MTP module is layer `num_hidden_layers`.
OUT/training/resume.safetensors gets the whole state in BF16, for train.py to go on from.
"""
from __future__ import annotations

import json
import os
import shutil
import sys

import torch
from safetensors.torch import save_file

from model import CONFIG

BLOCK, E4M3_MAX = 128, 448.0
KEEP_BF16 = ("embed_tokens", "lm_head", "shared_head.head", "norm", "mlp.gate.weight", "eh_proj")


def quantise(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(O, I) -> E4M3 (O, I) and float32 scales (O / 128, I / 128), both rounded up."""
    rows, cols = (-(-n // BLOCK) for n in weight.shape)
    padded = torch.zeros(rows * BLOCK, cols * BLOCK)
    padded[:weight.shape[0], :weight.shape[1]] = weight
    blocks = padded.view(rows, BLOCK, cols, BLOCK)
    scale = blocks.abs().amax((1, 3)).clamp_min(1e-12) / E4M3_MAX
    q = (blocks / scale[:, None, :, None]).reshape(rows * BLOCK, cols * BLOCK)[:weight.shape[0], :weight.shape[1]]
    return q.to(torch.float8_e4m3fn).contiguous(), scale.contiguous()


def published_names(state: dict) -> dict:
    """Training names -> published names, experts unstacked."""
    mtp = f"model.layers.{CONFIG['num_hidden_layers']}."
    out = {}
    for name, t in state.items():
        if name.startswith("mtp."):
            name = mtp + name[4:]
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
    out[mtp + "embed_tokens.weight"] = state["embed_tokens.weight"]
    out[mtp + "shared_head.head.weight"] = state["lm_head.weight"]
    return out


def main(run: str, out: str) -> None:
    os.makedirs(out, exist_ok=True)
    state, tensors = torch.load(f"{run}/state.pt"), {}
    os.makedirs(f"{out}/training", exist_ok=True)
    save_file({n: t.detach().to(torch.bfloat16).clone() for n, t in state.items()}, f"{out}/training/resume.safetensors")
    for name, t in published_names(state).items():
        t = t.detach().float()
        if name.endswith("e_score_correction_bias"):
            tensors[name] = t.clone()
        elif t.dim() == 2 and not any(k in name for k in KEEP_BF16):
            tensors[name], tensors[name + "_scale_inv"] = quantise(t)
        else:
            tensors[name] = t.to(torch.bfloat16).clone()
    save_file(tensors, f"{out}/model.safetensors", metadata={"format": "pt"})
    config = CONFIG | {"quantization_config": {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8",
                                               "weight_block_size": [BLOCK, BLOCK]}}
    json.dump(config, open(f"{out}/config.json", "w"), indent=2)
    json.dump({"bos_token_id": CONFIG["bos_token_id"], "eos_token_id": CONFIG["eos_token_id"], "do_sample": True,
               "temperature": 0.6, "top_p": 0.95}, open(f"{out}/generation_config.json", "w"), indent=2)
    for f in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(f"{run}/{f}", out)
    print(len(tensors), "tensors,", os.path.getsize(f"{out}/model.safetensors") >> 20, "MiB")


if __name__ == "__main__":
    main(*sys.argv[1:3])
