"""Measures whole models with `epic bench` and prints tables: `python tests/perf/run.py [--model DIR ...] [--write] [-- FLAGS]`.

Without --model: tiny-r1, and a synthetic checkpoint in V2-Lite's widths (made in BUILD/synthetic if missing) as it is, in INT8
and in INT4. What stands after -- goes to `epic bench`. --write puts the tables into tests/perf/RESULTS.md, or RESULTS_AMX.md on a CPU with AMX.
"""
from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from report import ROOT, Write, commit, table, write_section


def synthetic_checkpoint(build: Path) -> Path:
    folder = build / "synthetic"
    if not (folder / "tokenizer_config.json").exists():
        subprocess.run([sys.executable, ROOT / "tools/synthetic/make_checkpoint.py", folder], check=True)
    return folder


def bench(build: Path, model: Path, *flags: str) -> dict:
    command = [build / "bin/epic", "bench", model, "--json", *flags]
    return json.loads(subprocess.run([str(c) for c in command], check=True, stdout=subprocess.PIPE).stdout)


def table_of(report: dict) -> str:
    rows = [[r["kind"], f"{r['context']}", f"{r['rows']}", f"{r['tokens_per_second']:.1f}", f"{r['step_ms_p50']:.2f}",
             f"{r['step_ms_p90']:.2f}", f"{r['step_ms_p99']:.2f}", f"{r['floor_bytes'] / 1e6:.1f}",
             f"{100 * r['floor_share']:.0f} %"] for r in report["results"]]
    return table(["", "context", "rows", "tokens/s", "ms p50", "p90", "p99", "MB to read", "of bandwidth"], rows)


def text_of(report: dict, command: str) -> str:
    return (f"{report['backend']}; profile `{report['profile']}`; memory delivers "
            f"{report['bandwidth_bytes_per_second'] / 1e9:.1f} GB/s to {report['threads']} threads; "
            f"{report['checkpoint_bytes'] / 1e9:.2f} GB checkpoint; commit {commit()}.\n"
            f"`{command}`\n\n{table_of(report)}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--build", type=Path, default=ROOT / "build")
    parser.add_argument("--model", type=Path, action="append")
    parser.add_argument("--write", action=Write, help="into tests/perf/RESULTS.md, or RESULTS_AMX.md on a CPU with AMX")
    parser.add_argument("flags", nargs="*", help="for epic bench, after --")
    options = parser.parse_args()
    subprocess.run(["ninja", "-C", options.build, "epic"], check=True, stdout=subprocess.DEVNULL)
    if options.model:
        runs = [(model, []) for model in options.model]
    else:
        synthetic = synthetic_checkpoint(options.build)
        runs = [(ROOT / "models/tiny-r1", [])]
        runs += [(synthetic, ["--quantization", kind]) for kind in ("none", "int8", "int4")]
    for model, flags in runs:
        flags = [*flags, *options.flags]
        report = bench(options.build, model, *flags)
        heading = " ".join([model.name, *flags])
        text = text_of(report, " ".join(["epic bench", model.name, *flags]))
        print(f"## {heading}\n\n{text}", flush=True)
        if options.write:
            write_section(heading, text)


if __name__ == "__main__":
    main()
