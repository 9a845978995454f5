"""Tiny random checkpoints in every served style, with the float32 logits of transformers.

    python tools/golden/make_goldens.py tests/golden/data        (torch 2, transformers 5.23, safetensors)

No size is a multiple of 32 or 128. What initialisation leaves trivial (norms, correction bias) is
randomised. Published models spell config.json the old way, so half of these do.
"""
from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, DeepseekV2Config, DeepseekV3Config

SEQUENCES, LENGTH, VOCAB = 4, 70, 199
BASE = dict(vocab_size=VOCAB, hidden_size=60, intermediate_size=92, num_hidden_layers=3, num_attention_heads=5,
            num_key_value_heads=5, kv_lora_rank=36, qk_nope_head_dim=18, qk_rope_head_dim=10, v_head_dim=14,
            n_routed_experts=12, n_shared_experts=1, num_experts_per_tok=3, moe_intermediate_size=44,
            first_k_dense_replace=1, initializer_range=0.2, max_position_embeddings=512, tie_word_embeddings=False,
            attention_bias=False)
YARN = dict(rope_type="yarn", rope_theta=10000.0, factor=4.0, beta_fast=32, beta_slow=1, mscale=1.0,
            mscale_all_dim=1.0, original_max_position_embeddings=64)
GROUPS = dict(n_group=4, topk_group=2)
NO_GROUPS = dict(n_group=1, topk_group=1)
V3 = dict(q_lora_rank=44, norm_topk_prob=True, routed_scaling_factor=2.5, rope_parameters=YARN, **GROUPS)
V2 = dict(q_lora_rank=None, norm_topk_prob=False, routed_scaling_factor=1.0, topk_method="greedy", **NO_GROUPS)
STYLES = {
    "v2_lite": (DeepseekV2Config, {**V2, "rope_parameters": {**YARN, "mscale": 0.707, "mscale_all_dim": 0.707}}),
    "v2": (DeepseekV2Config, {**V2, **GROUPS, "q_lora_rank": 44, "topk_method": "group_limited_greedy",
                              "routed_scaling_factor": 16.0, "rope_parameters": YARN}),
    "v3_bf16": (DeepseekV3Config, V3),
    "v3_fp8": (DeepseekV3Config, {**V3, "hidden_size": 140, "intermediate_size": 92, "moe_intermediate_size": 132,
                                  "kv_lora_rank": 132, "q_lora_rank": 44, "n_routed_experts": 8}),
    "kimi_k2": (DeepseekV3Config, {**V3, **NO_GROUPS, "routed_scaling_factor": 2.827,
                                   "rope_parameters": {**YARN, "rope_theta": 50000.0, "beta_fast": 1}}),
    "moonlight": (DeepseekV3Config, {**V3, **NO_GROUPS, "q_lora_rank": None, "rms_norm_eps": 1e-5,
                                     "routed_scaling_factor": 2.446,
                                     "rope_parameters": dict(rope_type="default", rope_theta=50000.0)}),
}
OLD_SPELLING = {"v2", "v3_fp8", "kimi_k2", "moonlight"}


def to_old_spelling(config: dict, style: str) -> dict:
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    kind = rope.pop("rope_type")
    config["rope_scaling"] = None if kind == "default" else {"type": kind, **rope}
    if style != "v2":
        config.update(topk_method="noaux_tc", scoring_func="sigmoid")
    if style == "kimi_k2":
        config["model_type"] = "kimi_k2"
    config["torch_dtype"] = config.pop("dtype", "bfloat16")
    return config


def quantise(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """E4M3 in blocks of 128×128, the scales, and what they stand for."""
    rows, cols = weight.shape
    codes = torch.empty(rows, cols, dtype=torch.float8_e4m3fn)
    exact = torch.empty(rows, cols)
    scales = torch.empty((rows + 127) // 128, (cols + 127) // 128)
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            at = (slice(128 * i, 128 * i + 128), slice(128 * j, 128 * j + 128))
            scale = weight[at].abs().max() / 448
            codes[at] = (weight[at] / scale).clamp(-448, 448).to(torch.float8_e4m3fn)
            exact[at] = codes[at].float() * scale
            scales[i, j] = scale
    return codes, scales, exact


@torch.no_grad()
def make(style: str, folder: Path) -> None:
    kind, settings = STYLES[style]
    torch.manual_seed(sum(map(ord, style)))
    model = AutoModelForCausalLM.from_config(kind(**{**BASE, **settings}), attn_implementation="eager").eval().float()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.copy_(1 + 0.2 * torch.randn_like(parameter))
        parameter.copy_(parameter.bfloat16().float())
    for name, buffer in model.named_buffers():
        if "e_score_correction_bias" in name:
            buffer.copy_(0.2 * torch.randn_like(buffer))
    model.save_pretrained(folder)
    path = folder / "model.safetensors"
    stored, exact = {}, {}
    for name, tensor in load_file(path).items():
        if style == "v3_fp8" and ("proj.weight" in name or "proj_with_mqa" in name):
            stored[name], stored[name + "_scale_inv"], exact[name] = quantise(tensor.float())
        else:
            stored[name] = tensor.float() if "bias" in name else tensor.bfloat16()
            exact[name] = stored[name].float()
    config_path = folder / "config.json"
    if style == "v3_fp8":  # transformers itself lays the exact weights out
        save_file(exact, path, metadata={"format": "pt"})
        model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
    ids = torch.randint(0, VOCAB, (SEQUENCES, LENGTH))
    logits = model(ids).logits.float().contiguous()
    save_file(stored, path, metadata={"format": "pt"})
    save_file({"input_ids": ids.int(), "logits": logits}, folder / "golden.safetensors")
    config = json.loads(config_path.read_text())
    if style in OLD_SPELLING:
        config = to_old_spelling(config, style)
    if style == "v3_fp8":
        config["quantization_config"] = dict(activation_scheme="dynamic", fmt="e4m3", quant_method="fp8",
                                             weight_block_size=[128, 128])
    config_path.write_text(json.dumps(config, indent=2) + "\n")
    (folder / "generation_config.json").unlink(missing_ok=True)
    print(f"{style}: largest logit {logits.abs().max():.2f}")


if __name__ == "__main__":
    for each in STYLES:
        make(each, Path(sys.argv[1]) / each)
