"""Writes a random checkpoint of given widths, to measure speed: `python make_checkpoint.py OUT [--layers N] [--dtype fp8] …`.

Needs nothing but Python. Weights are normal with variance 1 / inputs, taken from a pool at random places, so every expert
differs and activations stay finite. The tokenizer of tiny-r1 comes along, so the folder can be served; its answers are noise.
"""
from __future__ import annotations

import argparse
import json
import math
import random
import shutil
import struct
from array import array
from pathlib import Path
from statistics import NormalDist

ROOT = Path(__file__).resolve().parents[2]
BLOCK, POOL_VALUES, SHARD_BYTES = 128, 1 << 19, 2 << 30
E4M3_DEVIATION = 16.0  # of the FP8 codes; the block scale does the rest

PRESETS = {
    "v2-lite": dict(
        architectures=["DeepseekV2ForCausalLM"], model_type="deepseek_v2", vocab_size=102400, hidden_size=2048,
        intermediate_size=10944, moe_intermediate_size=1408, num_hidden_layers=3, num_attention_heads=16,
        num_key_value_heads=16, n_shared_experts=2, n_routed_experts=64, routed_scaling_factor=1.0, kv_lora_rank=512,
        q_lora_rank=None, qk_rope_head_dim=64, v_head_dim=128, qk_nope_head_dim=128, topk_method="greedy", n_group=1,
        topk_group=1, num_experts_per_tok=6, moe_layer_freq=1, first_k_dense_replace=1, norm_topk_prob=False,
        scoring_func="softmax", hidden_act="silu", max_position_embeddings=163840, rms_norm_eps=1e-6,
        rope_theta=10000, attention_bias=False, tie_word_embeddings=False, bos_token_id=1007, eos_token_id=1008,
        rope_scaling=dict(type="yarn", factor=40, beta_fast=32, beta_slow=1, mscale=0.707, mscale_all_dim=0.707,
                          original_max_position_embeddings=4096)),
}


def shapes_of(c: dict):
    """(name, shape) of every tensor, in the order of the layers."""
    hidden, heads, rank = c["hidden_size"], c["num_attention_heads"], c["kv_lora_rank"]
    rope, nope, v = c["qk_rope_head_dim"], c["qk_nope_head_dim"], c["v_head_dim"]
    yield "model.embed_tokens.weight", (c["vocab_size"], hidden)
    for layer in range(c["num_hidden_layers"]):
        p = f"model.layers.{layer}."
        yield p + "input_layernorm.weight", (hidden,)
        yield p + "self_attn.q_proj.weight", (heads * (nope + rope), hidden)
        yield p + "self_attn.kv_a_proj_with_mqa.weight", (rank + rope, hidden)
        yield p + "self_attn.kv_a_layernorm.weight", (rank,)
        yield p + "self_attn.kv_b_proj.weight", (heads * (nope + v), rank)
        yield p + "self_attn.o_proj.weight", (hidden, heads * v)
        yield p + "post_attention_layernorm.weight", (hidden,)
        if layer < c["first_k_dense_replace"]:
            yield from mlp(p + "mlp.", hidden, c["intermediate_size"])
            continue
        yield p + "mlp.gate.weight", (c["n_routed_experts"], hidden)
        for expert in range(c["n_routed_experts"]):
            yield from mlp(f"{p}mlp.experts.{expert}.", hidden, c["moe_intermediate_size"])
        yield from mlp(p + "mlp.shared_experts.", hidden, c["moe_intermediate_size"] * c["n_shared_experts"])
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (c["vocab_size"], hidden)


def mlp(prefix: str, hidden: int, inner: int):
    yield prefix + "gate_proj.weight", (inner, hidden)
    yield prefix + "up_proj.weight", (inner, hidden)
    yield prefix + "down_proj.weight", (hidden, inner)


class Values:
    """Random bytes of weights, from pools drawn once."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)
        self.bf16_pools: dict[float, bytes] = {}
        quantiles = [NormalDist().inv_cdf((i + 0.5) / 256) * E4M3_DEVIATION for i in range(256)]
        self.fp8_pool = self.random.randbytes(POOL_VALUES).translate(bytes(e4m3(q) for q in quantiles))

    def bf16(self, count: int, deviation: float) -> bytes:
        if deviation not in self.bf16_pools:
            floats = array("f", (self.random.gauss(0, deviation) for _ in range(POOL_VALUES))).tobytes()
            pool = bytearray(POOL_VALUES * 2)
            pool[0::2], pool[1::2] = floats[2::4], floats[3::4]
            self.bf16_pools[deviation] = bytes(pool)
        return self.take(self.bf16_pools[deviation], count * 2)

    def fp8(self, count: int) -> bytes:
        return self.take(self.fp8_pool, count)

    def take(self, pool: bytes, size: int) -> bytes:
        pieces = []
        while size > 0:
            at = 2 * self.random.randrange(len(pool) // 4)
            pieces.append(pool[at:at + size])
            size -= len(pieces[-1])
        return b"".join(pieces)


def e4m3(value: float) -> int:
    """The nearest code of a normal number of FP8 E4M3."""
    sign, value = (0x80 if value < 0 else 0), abs(value)
    exponent = max(-6, min(8, math.floor(math.log2(value))))
    steps = round(value / 2.0 ** exponent * 8)
    return sign | min(0x7e, (exponent + 7) * 8 + steps - 8 if steps >= 8 else steps)


def stored(name: str, shape: tuple, fp8: bool):
    """(name, dtype, shape, bytes per value) of what stands in the file for a tensor."""
    if fp8 and name.endswith("_proj.weight") or fp8 and "proj_with_mqa" in name:
        yield name, "F8_E4M3", shape, 1
        yield name + "_scale_inv", "F32", tuple(-(-n // BLOCK) for n in shape), 4
    else:
        yield name, "BF16", shape, 2


def content(values: Values, dtype: str, shape: tuple, inputs: int) -> bytes:
    count = math.prod(shape)
    if dtype == "F8_E4M3":
        return values.fp8(count)
    if dtype == "F32":
        return struct.pack("<f", 1 / (E4M3_DEVIATION * math.sqrt(inputs))) * count
    if len(shape) == 1:  # a norm: 1.0
        return b"\x80\x3f" * count
    return values.bf16(count, 1 / math.sqrt(inputs))


def write_shard(path: Path, tensors: list, values: Values) -> None:
    header, at = {}, 0
    for name, dtype, shape, size, _ in tensors:
        end = at + math.prod(shape) * size
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, dtype, shape, _, inputs in tensors:
            file.write(content(values, dtype, shape, inputs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--preset", choices=PRESETS, default="v2-lite")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--vocab", type=int, help="at least the tokenizer's 1024")
    parser.add_argument("--dtype", choices=["bf16", "fp8"], default="bf16")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    config = dict(PRESETS[options.preset], torch_dtype="bfloat16")
    config["num_hidden_layers"] = options.layers or config["num_hidden_layers"]
    config["vocab_size"] = options.vocab or config["vocab_size"]
    if config["vocab_size"] < 1024:
        parser.error("--vocab is below the tokenizer's 1024")
    if options.dtype == "fp8":
        config["quantization_config"] = dict(activation_scheme="dynamic", fmt="e4m3", quant_method="fp8",
                                             weight_block_size=[BLOCK, BLOCK])
    shards, shard_bytes = [[]], 0
    for name, shape in shapes_of(config):
        for piece in stored(name, shape, options.dtype == "fp8"):
            size = math.prod(piece[2]) * piece[3]
            if shard_bytes + size > SHARD_BYTES and shards[-1]:
                shards.append([])
                shard_bytes = 0
            shards[-1].append((*piece, shape[-1]))
            shard_bytes += size
    options.out.mkdir(parents=True, exist_ok=True)
    values, index, total = Values(options.seed), {}, 0
    for i, tensors in enumerate(shards, 1):
        file = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        write_shard(options.out / file, tensors, values)
        index |= {t[0]: file for t in tensors}
        total += sum(math.prod(t[2]) * t[3] for t in tensors)
        print(f"{file}: {total / 1e9:.2f} GB so far", flush=True)
    (options.out / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": index}))
    (options.out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(ROOT / "models/tiny-r1" / name, options.out)


if __name__ == "__main__":
    main()
