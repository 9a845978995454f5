"""Writes a checkpoint of the deepseek_v2 family as GGUF, for llama.cpp: `python make_gguf.py CHECKPOINT OUT.gguf [--type q8_0]`.

The same weights in the same order of magnitude of bytes, so that speeds can be compared: q8_0 (34 bytes for 32 weights) next
to INT8, bf16 next to BF16. Norms and the router are F32, as llama.cpp wants them. There is no vocabulary: the file is for
llama-bench. Needs numpy.
"""
from __future__ import annotations

import argparse
import json
import struct
from pathlib import Path

import numpy as np

U32, I32, F32, BOOL, STRING = 4, 5, 6, 7, 8  # types of metadata
TYPES = {"f32": 0, "q8_0": 8, "bf16": 30}    # types of tensors
ALIGNMENT = 32
SOFTMAX, SIGMOID = 1, 2
SCALE_BLOCK = 128


def e4m3_values() -> np.ndarray:
    codes = np.arange(256)
    exponent, mantissa = codes >> 3 & 15, codes & 7
    magnitude = np.where(exponent == 0, mantissa / 8 * 2.0 ** -6, (1 + mantissa / 8) * 2.0 ** (exponent - 7.0))
    return np.where(codes & 0x80, -magnitude, magnitude).astype(np.float32)


class Checkpoint:
    """The tensors of a folder of safetensors, as float32."""

    def __init__(self, folder: Path):
        self.entries = {}
        self.e4m3 = e4m3_values()
        for path in sorted(folder.glob("*.safetensors")):
            data = np.memmap(path, mode="r", dtype=np.uint8)
            size = int(data[:8].view("<u8")[0])
            for name, entry in json.loads(bytes(data[8:8 + size])).items():
                if name != "__metadata__":
                    begin, end = entry["data_offsets"]
                    self.entries[name] = (entry, data[8 + size + begin:8 + size + end])

    def read(self, name: str) -> np.ndarray:
        entry, data = self.entries[name]
        shape = entry["shape"]
        if entry["dtype"] == "BF16":
            return (data.view("<u2").astype(np.uint32) << 16).view(np.float32).reshape(shape)
        if entry["dtype"] == "F32":
            return data.view("<f4").reshape(shape)
        if entry["dtype"] != "F8_E4M3":
            raise SystemExit(f"{name}: {entry['dtype']} is not read here")
        scales = self.read(name + "_scale_inv").repeat(SCALE_BLOCK, 0).repeat(SCALE_BLOCK, 1)
        return self.e4m3[data].reshape(shape) * scales[:shape[0], :shape[1]]


def encode(values: np.ndarray, kind: str) -> bytes:
    values = np.ascontiguousarray(values, np.float32)
    if kind == "f32":
        return values.tobytes()
    if kind == "bf16":
        bits = values.view(np.uint32)
        return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2").tobytes()
    blocks = values.reshape(-1, 32)
    scales = np.abs(blocks).max(1) / 127
    inverse = np.divide(1, scales, out=np.zeros_like(scales), where=scales > 0)
    out = np.empty((len(blocks), 34), np.uint8)
    out[:, :2] = scales.astype("<f2").view(np.uint8).reshape(-1, 2)
    out[:, 2:] = np.rint(blocks * inverse[:, None]).astype(np.int8).view(np.uint8)
    return out.tobytes()


def encoded_size(shape: tuple, kind: str) -> int:
    count = int(np.prod(shape))
    return {"f32": 4 * count, "bf16": 2 * count, "q8_0": count // 32 * 34}[kind]


def tensors_of(c: dict, checkpoint: Checkpoint):
    """(GGUF's name, shape, whether it is kept in F32, a function that yields its rows in pieces)."""
    def plain(name, to, exact=False):
        shape = tuple(checkpoint.entries[name][0]["shape"])
        return to, shape, exact or len(shape) == 1, lambda: iter([checkpoint.read(name)])

    heads, rank = c["num_attention_heads"], c["kv_lora_rank"]
    nope, v = c["qk_nope_head_dim"], c["v_head_dim"]
    yield plain("model.embed_tokens.weight", "token_embd.weight")
    for i in range(c["num_hidden_layers"]):
        layer, to = f"model.layers.{i}.", f"blk.{i}."
        attention = layer + "self_attn."
        yield plain(layer + "input_layernorm.weight", to + "attn_norm.weight")
        if c.get("q_lora_rank"):
            yield plain(attention + "q_a_proj.weight", to + "attn_q_a.weight")
            yield plain(attention + "q_a_layernorm.weight", to + "attn_q_a_norm.weight")
            yield plain(attention + "q_b_proj.weight", to + "attn_q_b.weight")
        else:
            yield plain(attention + "q_proj.weight", to + "attn_q.weight")
        yield plain(attention + "kv_a_proj_with_mqa.weight", to + "attn_kv_a_mqa.weight")
        yield plain(attention + "kv_a_layernorm.weight", to + "attn_kv_a_norm.weight")
        # Bound now: the pieces are read when the loop is over.
        def per_head(name=attention + "kv_b_proj.weight"):
            return checkpoint.read(name).reshape(heads, nope + v, rank)
        yield to + "attn_k_b.weight", (heads, rank, nope), False, \
            lambda read=per_head: iter([read()[:, :nope].transpose(0, 2, 1)])
        yield to + "attn_v_b.weight", (heads, v, rank), False, lambda read=per_head: iter([read()[:, nope:]])
        yield plain(attention + "o_proj.weight", to + "attn_output.weight")
        yield plain(layer + "post_attention_layernorm.weight", to + "ffn_norm.weight")
        if i < c["first_k_dense_replace"]:
            for part in ("gate", "up", "down"):
                yield plain(f"{layer}mlp.{part}_proj.weight", f"{to}ffn_{part}.weight")
            continue
        yield plain(layer + "mlp.gate.weight", to + "ffn_gate_inp.weight", exact=True)
        for part in ("gate", "up", "down"):
            names = [f"{layer}mlp.experts.{e}.{part}_proj.weight" for e in range(c["n_routed_experts"])]
            shape = (len(names), *checkpoint.entries[names[0]][0]["shape"])
            yield f"{to}ffn_{part}_exps.weight", shape, False, lambda names=names: map(checkpoint.read, names)
            yield plain(f"{layer}mlp.shared_experts.{part}_proj.weight", f"{to}ffn_{part}_shexp.weight")
    yield plain("model.norm.weight", "output_norm.weight")
    yield plain("lm_head.weight", "output.weight")


def metadata_of(c: dict) -> dict:
    rope, rank = c["qk_rope_head_dim"], c["kv_lora_rank"]
    values = {
        "block_count": (U32, c["num_hidden_layers"]), "context_length": (U32, c["max_position_embeddings"]),
        "embedding_length": (U32, c["hidden_size"]), "feed_forward_length": (U32, c["intermediate_size"]),
        "vocab_size": (U32, c["vocab_size"]), "leading_dense_block_count": (U32, c["first_k_dense_replace"]),
        "attention.head_count": (U32, c["num_attention_heads"]), "attention.head_count_kv": (U32, 1),
        "attention.layer_norm_rms_epsilon": (F32, c["rms_norm_eps"]),
        "attention.q_lora_rank": (U32, c.get("q_lora_rank") or 0), "attention.kv_lora_rank": (U32, rank),
        "attention.key_length": (U32, rank + rope), "attention.value_length": (U32, rank),
        "attention.key_length_mla": (U32, c["qk_nope_head_dim"] + rope),
        "attention.value_length_mla": (U32, c["v_head_dim"]),
        "expert_count": (U32, c["n_routed_experts"]), "expert_used_count": (U32, c["num_experts_per_tok"]),
        "expert_shared_count": (U32, c["n_shared_experts"]),
        "expert_feed_forward_length": (U32, c["moe_intermediate_size"]),
        "expert_weights_scale": (F32, c["routed_scaling_factor"]),
        "expert_weights_norm": (BOOL, c["norm_topk_prob"]),
        "expert_gating_func": (U32, SIGMOID if c["scoring_func"] == "sigmoid" else SOFTMAX),
        "rope.dimension_count": (U32, rope), "rope.freq_base": (F32, c["rope_theta"]),
    }
    scaling = c.get("rope_scaling")
    if scaling:
        values |= {"rope.scaling.type": (STRING, "yarn"), "rope.scaling.factor": (F32, scaling["factor"]),
                   "rope.scaling.original_context_length": (U32, scaling["original_max_position_embeddings"]),
                   "rope.scaling.yarn_log_multiplier": (F32, 0.1 * scaling["mscale_all_dim"])}
    return {"general.architecture": (STRING, "deepseek2"), "tokenizer.ggml.model": (STRING, "no_vocab"),
            **{f"deepseek2.{key}": value for key, value in values.items()}}


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def write(out: Path, metadata: dict, tensors: list, kind: str) -> None:
    formats = {U32: "<I", I32: "<i", F32: "<f", BOOL: "<?"}
    header = b"GGUF" + struct.pack("<Iqq", 3, len(tensors), len(metadata))
    for key, (type_id, value) in metadata.items():
        encoded = text(value) if type_id == STRING else struct.pack(formats[type_id], value)
        header += text(key) + struct.pack("<i", type_id) + encoded
    at = 0
    for name, shape, exact, _ in tensors:
        of = "f32" if exact else kind
        header += text(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}q", *reversed(shape))
        header += struct.pack("<iQ", TYPES[of], at)
        at += -(-encoded_size(shape, of) // ALIGNMENT) * ALIGNMENT
    with out.open("wb") as file:
        file.write(header + bytes(-len(header) % ALIGNMENT))
        for name, shape, exact, pieces in tensors:
            begin = file.tell()
            for piece in pieces():
                file.write(encode(piece, "f32" if exact else kind))
            assert file.tell() - begin == encoded_size(shape, "f32" if exact else kind), name
            file.write(bytes(-file.tell() % ALIGNMENT))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--type", choices=["q8_0", "bf16"], default="q8_0")
    options = parser.parse_args()
    config = json.loads((options.checkpoint / "config.json").read_text())
    if config.get("n_group", 1) > 1:
        parser.error("config.json: n_group is above 1; groups of experts are not written")
    tensors = list(tensors_of(config, Checkpoint(options.checkpoint)))
    write(options.out, metadata_of(config), tensors, options.type)
    weights = sum(int(np.prod(shape)) for _, shape, _, _ in tensors)
    size = options.out.stat().st_size
    print(f"{options.out}: {size / 1e9:.2f} GB, {size / weights:.3f} bytes a weight")


if __name__ == "__main__":
    main()
