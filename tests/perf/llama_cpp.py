"""Runs llama.cpp and EPIC in turns on the same weights: `python tests/perf/llama_cpp.py LLAMA_BENCH [--rounds 5] [--write]`.

LLAMA_BENCH is the llama-bench program that you built (cmake --build build --target llama-bench llama-batched-bench). If
llama-batched-bench stands beside it, decoding at several sequences is compared too, without context: it would compute every
sequence's prompt first. The weights are a synthetic checkpoint in
V2-Lite's widths: EPIC reads it with --quantization int8, llama.cpp as Q8_0, or both in BF16 (--type bf16); bytes a weight of
both are printed. Needs numpy for the GGUF file, which is made once.
"""
from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from report import ROOT, Write, commit, table, write_section
from run import bench, synthetic_checkpoint

QUANTIZATION = {"q8_0": "int8", "bf16": "none"}
STEPS = 32


def make_gguf(checkpoint: Path, kind: str) -> Path:
    out = checkpoint / f"{kind}.gguf"
    if not out.exists():
        part = out.with_suffix(".part")
        subprocess.run([sys.executable, ROOT / "tools/synthetic/make_gguf.py", checkpoint, part, "--type", kind], check=True)
        part.rename(out)
    return out


def output_of(*command) -> str:
    return subprocess.run([str(c) for c in command], check=True, stdout=subprocess.PIPE, text=True).stdout


class Rivals:
    def __init__(self, options, checkpoint: Path):
        self.options, self.checkpoint = options, checkpoint
        self.gguf = make_gguf(checkpoint, options.type)
        self.batched = options.llama_bench.with_name("llama-batched-bench")

    def parts(self) -> list[tuple[int, list[int], list[int]]]:
        """What is measured in one turn: context, prompts, batches. Short, since memory's speed changes with what else a host does."""
        o, parts = self.options, []
        for context in o.context:
            many = [b for b in o.batch if b > 1]
            for prompts, batches in ((o.prompt, []), ([], [b for b in o.batch if b == 1]), ([], many)):
                if prompts or batches:
                    parts.append((context, prompts, batches))
        return parts

    def epic(self, context: int, prompts: list[int], batches: list[int]) -> tuple[dict, dict]:
        """Tokens per second by (kind, context, rows), and the whole report."""
        o = self.options
        numbers = lambda values: ",".join(map(str, values))
        report = bench(o.build, self.checkpoint, "--quantization", QUANTIZATION[o.type], "--threads", str(o.threads),
                       "--prompt", numbers(prompts or [1]), "--batch", numbers(batches or [1]), "--context", str(context),
                       "--steps", str(STEPS), "--rounds", "1")
        kinds = (["prefill"] if prompts else []) + (["decode"] if batches else [])
        return {(r["kind"], r["context"], r["rows"]): r["tokens_per_second"]
                for r in report["results"] if r["kind"] in kinds}, report

    def llama(self, context: int, prompts: list[int], batches: list[int]) -> dict:
        o = self.options
        if batches and 1 not in batches:
            return self.llama_batched(batches) if context == 0 and self.batched.exists() else {}
        lengths = sum((["-p", str(p)] for p in prompts or [0]), []) + ["-n", STEPS if batches else 0]
        lines = json.loads(output_of(o.llama_bench, "-m", self.gguf, "-t", o.threads, *lengths, "-d", context,
                                     "-r", 1, "-b", 2048, "-ub", 2048, "-o", "json"))
        return {("prefill", context, line["n_prompt"]) if line["n_prompt"] else ("decode", context, 1): line["avg_ts"]
                for line in lines}

    def llama_batched(self, batches: list[int]) -> dict:
        lines = output_of(self.batched, "-m", self.gguf, "-t", self.options.threads, "-npp", 1, "-ntg", STEPS,
                          "-npl", ",".join(map(str, batches)), "-c", max(batches) * (1 + STEPS), "-b", 2048, "-ub", 2048,
                          "--output-format", "jsonl")
        found = [json.loads(line) for line in lines.splitlines() if line.startswith("{")]
        return {("decode", 0, line["pl"]): line["speed_tg"] for line in found}


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.1f} ({min(values):.1f}–{max(values):.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("llama_bench", type=Path)
    parser.add_argument("--build", type=Path, default=ROOT / "build")
    parser.add_argument("--model", type=Path, help="default: a synthetic checkpoint in BUILD/synthetic")
    parser.add_argument("--type", choices=QUANTIZATION, default="q8_0")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--prompt", type=int, nargs="*", default=[512, 2048])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--context", type=int, nargs="+", default=[0, 8192])
    parser.add_argument("--write", action=Write, help="into tests/perf/RESULTS.md")
    options = parser.parse_args()
    checkpoint = options.model or synthetic_checkpoint(options.build)
    rivals = Rivals(options, checkpoint)
    epic, llama = {}, {}
    for turn in range(options.rounds):
        for part in rivals.parts():
            speeds, report = rivals.epic(*part)
            for into, found in ((epic, speeds), (llama, rivals.llama(*part))):
                for key, speed in found.items():
                    into.setdefault(key, []).append(speed)
        print(f"round {turn + 1} of {options.rounds} is done", file=sys.stderr)
    rows = []
    for key in epic:
        kind, context, count = key
        ours, theirs = epic[key], llama.get(key)
        ratio = f"{statistics.median(ours) / statistics.median(theirs):.2f}" if theirs else ""
        rows.append([kind, str(context), str(count), spread(ours), spread(theirs) if theirs else "", ratio])
    weights = json.loads((checkpoint / "model.safetensors.index.json").read_text())["metadata"]["total_size"] / 2
    text = (f"{report['backend']}; profile `{report['profile']}`; memory delivers "
            f"{report['bandwidth_bytes_per_second'] / 1e9:.1f} GB/s to {report['threads']} threads; commit {commit()}.\n"
            f"Tokens per second, median (lowest–highest) of {options.rounds} rounds in turns. Bytes a weight: llama.cpp "
            f"{rivals.gguf.stat().st_size / weights:.3f} ({options.type}), EPIC {report['packed_bytes'] / weights:.3f}.\n\n"
            + table(["", "context", "rows", "EPIC", "llama.cpp", "ratio"], rows))
    heading = f"Next to llama.cpp, {options.type}"
    print(f"## {heading}\n\n{text}")
    if options.write:
        write_section(heading, text)


if __name__ == "__main__":
    main()
