"""Measures the engine and prints a table: `python tests/perf/run.py [--build DIR] [--model DIR ...] [--threads N]`.

Without --model: tiny-r1 and a synthetic checkpoint in V2-Lite's widths (made in BUILD/synthetic if missing). The share is
what decoding at batch 1 reads at least (each weight it needs, once) over what memory delivers to all threads at once.
"""
from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return "unknown CPU"


def output_of(*command) -> dict:
    return json.loads(subprocess.run([str(c) for c in command], check=True, stdout=subprocess.PIPE).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--build", type=Path, default=ROOT / "build")
    parser.add_argument("--model", type=Path, action="append")
    parser.add_argument("--threads", type=int, default=0, help="0: all cores")
    parser.add_argument("--family", default="auto")
    options = parser.parse_args()
    subprocess.run(["ninja", "-C", options.build, "bandwidth", "engine-bench"], check=True, stdout=subprocess.DEVNULL)
    models = options.model
    if not models:
        synthetic = options.build / "synthetic"
        if not (synthetic / "tokenizer_config.json").exists():
            subprocess.run([sys.executable, ROOT / "tools/synthetic/make_checkpoint.py", synthetic], check=True)
        models = [ROOT / "models/tiny-r1", synthetic]
    memory = output_of(options.build / "bin/bandwidth", *([options.threads] if options.threads else []))
    rows, backend = [], ""
    for folder in models:
        r = output_of(options.build / "bin/engine-bench", folder, "--threads", options.threads, "--family", options.family)
        backend = f"{r['backend']}, {r['profile']}"
        decode = {d["batch"]: d["tokens_per_second"] for d in r["decode"]}
        reached = decode[1] * r["bytes_per_token"]
        rows.append(f"| {folder.name} | {r['checkpoint_bytes'] / 1e9:.2f} | {r['prefill_tokens_per_second']:.0f} | "
                    f"{decode[1]:.1f} | {decode[8]:.1f} | {r['bytes_per_token'] / 1e6:.0f} | {reached / 1e9:.1f} | "
                    f"{100 * reached / memory['bytes_per_second']:.0f} % |")
    print(f"{cpu_name()}; {backend}")
    print(f"Memory delivers {memory['bytes_per_second'] / 1e9:.1f} GB/s to {memory['threads']} threads.\n")
    print("| model | GB | prefill tokens/s (512) | decode tokens/s | at batch 8 | MB a token | GB/s at batch 1 | of memory |")
    print("|---|---|---|---|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
