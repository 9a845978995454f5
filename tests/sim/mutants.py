"""Tests the tester: every mutant in the sources must be found by the simulator.

`python tests/sim/mutants.py SIM [--seeds N] [NAME …]`
"""
from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("worker", "coordinator", "cluster")
COUNT_MAX = 20


def names() -> list[str]:
    found = set()
    for folder in FOLDERS:
        for source in sorted((ROOT / folder).rglob("*.cc")):
            found.update(re.findall(r'EPIC_MUTANT\("(\w+)"\)', source.read_text()))
    return sorted(found)


def hunt(sim: str, mutant: str, seeds: int) -> str:
    """How it was found; empty: it was not."""
    run = subprocess.run([sim, "--from", "1", "--seeds", str(seeds)], env=os.environ | {"EPIC_MUTANT": mutant},
                         capture_output=True, text=True)
    if run.returncode == 0:
        return ""
    lines = (run.stdout + run.stderr).strip().split("\n")
    return "; ".join(line.strip() for line in lines[:2])


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("sim")
    parser.add_argument("names", nargs="*")
    parser.add_argument("--seeds", type=int, default=10000)
    options = parser.parse_args()
    mutants = options.names or names()
    if len(mutants) > COUNT_MAX or not mutants:
        print(f"{len(mutants)} mutants, 1 to {COUNT_MAX} are wanted")
        return 1
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(lambda mutant: hunt(options.sim, mutant, options.seeds), mutants))
    for mutant, how in zip(mutants, found):
        print(f"{mutant}: {how or 'NOT FOUND'}")
    return 0 if all(found) else 1


if __name__ == "__main__":
    sys.exit(main())
