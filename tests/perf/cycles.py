"""Kills workers and starts them again under load, a thousand times: whether the coordinator and the ranks that stay grow, how long streams pause, and
whether a token changes (then it fails).

`python3 tests/perf/cycles.py [--cycles N] [--write]`
"""
from __future__ import annotations

import argparse
import random
import sys
import tempfile
import threading
import time
from pathlib import Path

from report import Write, table, write_section
from world import PAGE, machine, streams

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/e2e"))
from ranks import Footprint, Ranks  # noqa: E402

ROLES = ["attention", "experts", "attention", "experts", "experts"]
STAY = 2  # the first ones live on
STREAMS, TOKENS = 8, 100
WARM_UP = 5


def footprints(server: Ranks) -> list[Footprint]:
    return [Footprint.of(pid) for pid in (server.process.pid, *(worker.pid for worker in server.workers[:STAY]))]


def cycle(server: Ranks, draw: random.Random, expected: list[list[int]], lost: int) -> float:
    """The longest time that a stream stood still."""
    victim = draw.choice(server.workers[STAY:])
    roles = victim.args[victim.args.index("--roles") + 1]
    joined = threading.Event()

    def harm():
        time.sleep(draw.uniform(0.02, 0.2))
        server.kill(victim)
        server.join(roles)
        joined.set()

    ids, pause, _ = streams(server, STREAMS, TOKENS, harm)
    if ids != expected:
        raise RuntimeError("other tokens came")
    joined.wait(60)
    server.wait_whole(len(ROLES), lost)
    return pause


def percentile(values: list[float], part: float) -> float:
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]


def run(folder: Path, cycles: int, every: int) -> tuple[list[list[str]], list[float]]:
    """Rows of footprints, and the pause of each cycle."""
    draw, rows, pauses = random.Random(1), [], []

    def look(done: int) -> None:
        row = [str(done)]
        for each in footprints(server):
            row += [str(each.descriptors), f"{each.resident_bytes / (1 << 20):.1f}"]
        rows.append(row)
        print("cycle", *row, flush=True)

    with Ranks(folder, ROLES, "--expect-ranks", str(len(ROLES))) as server:
        server.wait_whole(len(ROLES))
        expected, _, _ = streams(server, STREAMS, TOKENS)
        look(0)
        for done in range(1, cycles + 1):
            pauses.append(cycle(server, draw, expected, lost=done))
            if done == WARM_UP or done % every == 0 or done == cycles:
                look(done)
        if server.metric("epic_replay_mismatch_total") != 0:
            raise RuntimeError("tokens were replayed differently")
        if server.metric("epic_workers_lost_total") != cycles:
            raise RuntimeError(f"{server.metric('epic_workers_lost_total')} ranks were lost, {cycles} were killed")
    return rows, pauses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cycles", type=int, default=1000)
    parser.add_argument("--every", type=int, default=100, help="cycles between two looks")
    parser.add_argument("--write", action=Write, help="into tests/perf/WORLD.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        rows, pauses = run(Path(name), options.cycles, options.every)
    quantiles = ", ".join(f"p{part} {percentile(pauses, part / 100) * 1000:.0f} ms" for part in (50, 90, 99, 100))
    text = "\n".join([
        f"{machine()}, tiny-r1. {options.cycles} times one worker of {len(ROLES)} was killed (SIGKILL) and started again while {STREAMS} streams ran; "
        f"descriptors and resident MiB at rest, of the coordinator and of an attention rank and an expert rank that stayed.", "",
        f"Tokens changed: 0 of {options.cycles * STREAMS * TOKENS}. Longest pause of the streams of a cycle: {quantiles}.", "",
        table(["cycle", "coordinator: descriptors", "MiB", "attention rank: descriptors", "MiB", "expert rank: descriptors", "MiB"], rows)])
    print(text)
    if options.write:
        write_section("Kills and joins, again and again", text, PAGE)


if __name__ == "__main__":
    main()
