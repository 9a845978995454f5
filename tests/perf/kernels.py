"""Measures kernels in turns and prints tables: `python tests/perf/kernels.py [weights] [prompt] [splits] [step] [--rounds 7] [--write]`.

weights: decoding by each type of weight, its time against INT8's scaled by bytes. prompt: an attention sub-layer on chunks of prompts,
absorbed and expanded. splits: attention by splits of fixed tokens against splits that threads and batch choose. step: what a step of tiny-r1 takes beyond its operations. Medians over rounds that
alternate between all cases, with the lowest and highest; --write puts the tables into tests/perf/RESULTS.md, or RESULTS_AMX.md on a CPU with AMX.
"""
from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
from pathlib import Path

from report import ROOT, Write, commit, table, write_section


class Times:
    """Seconds of each benchmark, by its name without the suffixes of the library."""

    def __init__(self, build: Path, program: str, pattern: str, rounds: int, *arguments):
        command = [build / "bin" / program, *arguments, f"--benchmark_filter={pattern}", f"--benchmark_repetitions={rounds}",
                   "--benchmark_enable_random_interleaving=true", "--benchmark_min_time=0.05", "--benchmark_format=json"]
        done = subprocess.run([str(c) for c in command], check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self.of: dict[str, list[float]] = {}
        self.bandwidth: dict[str, list[float]] = {}
        self.beyond: dict[str, list[float]] = {}
        runs = json.loads(done.stdout)["benchmarks"]
        runs.sort(key=lambda run: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", run["run_name"])])
        for run in runs:
            if run["run_type"] != "iteration" or "error_occurred" in run:
                continue
            name = run["run_name"].split("/real_time")[0].split("/repeats:")[0]
            self.of.setdefault(name, []).append(run["real_time"] * {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1}[run["time_unit"]])
            if "beyond" in run:
                self.beyond.setdefault(name, []).append(run["beyond"])
            if "bytes_per_second" in run:
                self.bandwidth.setdefault(name, []).append(run["bytes_per_second"])

    def median(self, name: str) -> float:
        return statistics.median(self.of[name])

    def text(self, name: str) -> str:
        return f"{1e3 * self.median(name):.2f} ({1e3 * min(self.of[name]):.2f}–{1e3 * max(self.of[name]):.2f})"

    def bytes_per_second(self, name: str) -> float:
        return statistics.median(self.bandwidth[name])


def cpu_name() -> str:
    return re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())[1].strip()


def weights(build: Path, rounds: int) -> str:
    """Each run reads the same bytes, so times scaled by bytes compare as they are."""
    times = Times(build, "gemm_benchmark", "ReadAll|Products/.*/(1|4|8|32)/2048/2048/", rounds)
    memory = times.bytes_per_second("ReadAll")
    rows = []
    for name in times.of:
        if name == "ReadAll":
            continue
        family, dtype, m = re.match(r"Products/(.*)/(\w+)/(\d+)/2048/2048", name).groups()
        int8 = [f"Products/int8/{tier}/INT8/{m}/2048/2048" for tier in ("AMX", "VNNI", "AVX2")]
        against = next(i for i in int8 if i in times.of)
        rows.append([family, dtype, m, times.text(name), f"{times.bytes_per_second(name) / 1e9:.1f}",
                     f"{100 * times.bytes_per_second(name) / memory:.0f} %",
                     f"{times.bytes_per_second(against) / times.bytes_per_second(name):.2f}×"])
    return (f"2 GiB of weights of 2048×2048; memory delivers {memory / 1e9:.1f} GB/s to all threads (ReadAll).\n\n"
            + table(["family", "weights", "rows", "ms", "GB/s", "of bandwidth", "against INT8 by bytes"], rows))


def prompt(build: Path, rounds: int) -> str:
    times = Times(build, "attention_benchmark", "Prompt/", rounds)
    rows = []
    for name in times.of:
        if not name.startswith("Prompt/absorbed/"):
            continue
        other = name.replace("absorbed", "expanded")
        chunk, context = name.split("/")[2:4]
        rows.append([chunk, context, times.text(name), times.text(other), f"{times.median(name) / times.median(other):.2f}×"])
    return ("An attention sub-layer in V2-Lite's widths, one chunk of one prompt, the family that is taken by itself.\n\n"
            + table(["rows", "records before", "absorbed ms", "expanded ms", "gain"], rows))


def splits(build: Path, rounds: int) -> str:
    times = Times(build, "split_benchmark", ".", rounds)
    rows = []
    for name in times.of:
        if not name.startswith("Fixed/"):
            continue
        other = name.replace("Fixed", "Dynamic")
        rows.append([*name.split("/")[1:4], times.text(name), times.text(other),
                     f"{100 * (times.median(name) / times.median(other) - 1):+.1f} %"])
    return ("Absorbed attention in V2-Lite's widths; products have no split to choose, as one thread sums each output.\n\n"
            + table(["sequences", "rows of each", "records before", "fixed ms", "dynamic ms", "price"], rows))


def step(build: Path, rounds: int) -> str:
    times = Times(build, "step_benchmark", ".", rounds, ROOT / "models/tiny-r1")
    rows = [[name.split("/")[1], times.text(name), f"{100 * statistics.median(times.beyond[name]):.1f} %"] for name in times.of]
    return ("A step of tiny-r1 in the engine, sampling in and network out, against the time within its operations.\n\n"
            + table(["sequences", "ms", "beyond its operations"], rows))


SECTIONS = {"weights": ("Decoding by type of weight", weights, "gemm_benchmark"),
            "prompt": ("Prompts absorbed and expanded", prompt, "attention_benchmark"),
            "splits": ("The price of the fixed tree", splits, "split_benchmark"),
            "step": ("A step beyond its operations", step, "step_benchmark")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("sections", nargs="*", help=f"of {', '.join(SECTIONS)}; default: all")
    parser.add_argument("--build", type=Path, default=ROOT / "build")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--write", action=Write, help="into tests/perf/RESULTS.md, or RESULTS_AMX.md on a CPU with AMX")
    options = parser.parse_args()
    for section in options.sections or SECTIONS:
        heading, measure, program = SECTIONS[section]
        subprocess.run(["ninja", "-C", options.build, program], check=True, stdout=subprocess.DEVNULL)
        text = f"{cpu_name()}; {options.rounds} rounds, median (lowest–highest); commit {commit()}.\n{measure(options.build, options.rounds)}\n"
        print(f"## {heading}\n\n{text}", flush=True)
        if options.write:
            write_section(heading, text)


if __name__ == "__main__":
    main()
