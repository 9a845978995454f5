"""What a world of ranks costs and how it takes losses, on the shipped model: `python tests/perf/world.py [--rounds N] [--write]`.

Worlds are started as `epic serve` starts them. Each figure is the median of the rounds, with the least and the greatest; both sides of a ratio
alternate in one run. Uses what ./dev test installs for the end-to-end tests.
"""
from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/e2e"))
from report import Write, write_section  # noqa: E402
from server import Server  # noqa: E402

PAGE = ROOT / "tests/perf/WORLD.md"
QUESTION = "What is 358 + 467?"


def stream(url: str, seed: int, tokens: int, times: list[float]) -> list[int]:
    """Token ids of one answer; when each chunk came goes into `times`."""
    body = {"model": "tiny-r1", "messages": [{"role": "user", "content": QUESTION}], "temperature": 0.9, "seed": seed,
            "max_tokens": tokens, "ignore_eos": True, "stream": True, "return_token_ids": True}
    request = urllib.request.Request(url + "/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
    ids = []
    with urllib.request.urlopen(request, timeout=120) as answer:
        for line in answer:
            if not line.startswith(b"data: {"):
                continue
            times.append(time.monotonic())
            for choice in json.loads(line[6:])["choices"]:
                ids += choice.get("token_ids") or []
    return ids


def streams(server: Server, count: int, tokens: int, meanwhile=lambda: None) -> tuple[list[list[int]], float, float]:
    """The answers, the longest time that a stream stood still, and the seconds that all took."""
    times = [[] for _ in range(count)]
    start = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        answers = [pool.submit(stream, server.url, seed, tokens, times[seed]) for seed in range(count)]
        threading.Thread(target=meanwhile).start()
        ids = [answer.result() for answer in answers]
    seconds = time.monotonic() - start
    return ids, max(b - a for each in times for a, b in zip(each, each[1:])), seconds


def whole(server: Server, ranks: int) -> None:
    end = time.monotonic() + 60
    while sum(r["state"] == "ready" for r in json.loads(server.get("/ready")[1])["ranks"]) < ranks:
        if time.monotonic() > end:
            raise RuntimeError(server.get("/ready")[1])
        time.sleep(0.05)


def victims(server: Server, role: str) -> list[int]:
    with_role = lambda pid: f"--roles\0{role}\0" in Path(f"/proc/{pid}/cmdline").read_text()
    return [pid for pid in server.children("epic-worker") if with_role(pid)]


def losses(folder: Path, rounds: int) -> list[tuple[str, list[float]]]:
    rows, draw = [], random.Random(1)
    with Server(folder / "losses", "--attention-ranks", "2", "--expert-ranks", "3") as server:
        expected, _, _ = streams(server, 8, 200)
        for what, role, sent in (("nothing happens", None, None), ("kill -9 of an expert rank", "experts", signal.SIGKILL),
                                 ("kill -9 of an attention rank", "attention", signal.SIGKILL), ("an expert rank hangs", "experts", signal.SIGSTOP)):
            gaps = []
            for _ in range(rounds):
                whole(server, 5)

                def harm():
                    time.sleep(0.2)
                    if role:
                        victim = draw.choice(victims(server, role))
                        os.kill(victim, sent)
                        if sent == signal.SIGSTOP:
                            time.sleep(3)
                            os.kill(victim, signal.SIGCONT)

                ids, gap, _ = streams(server, 8, 200, harm)
                if ids != expected:
                    raise RuntimeError(f"{what}: other tokens came")
                gaps.append(gap)
                # The supervisor gives up after 5 deaths of one worker within a minute.
                time.sleep(4 if sent == signal.SIGKILL else 0)
            rows.append((f"longest pause of 8 streams, {what}", gaps))
        if server.metric("epic_replay_mismatch_total") != 0:
            raise RuntimeError("tokens were replayed differently")
    return rows


def cpu_seconds(pid: int) -> float:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def costs(a: Server, b: Server, rounds: int) -> tuple[list[float], list[float], list[float]]:
    """Tokens a second of one process with two threads (a) and of two with a core each (b), and the coordinator's CPU per token."""
    one, two, coordinator = [], [], []
    for server in (a, b):
        streams(server, 8, 100)
    for _ in range(rounds):
        one.append(8 * 200 / streams(a, 8, 200)[2])
        two.append(8 * 200 / streams(b, 8, 200)[2])
        pid = a.children("epic-coordinator")[0]
        before = cpu_seconds(pid)
        streams(a, 32, 200)
        coordinator.append((cpu_seconds(pid) - before) / (32 * 200))
    return one, two, coordinator


def prompts(server: Server, seed: int, count: int, tokens: int) -> float:
    """Prompt tokens a second over so many prompts at once that nothing has cached."""
    draw = random.Random(seed)

    def ask(ids: list[int]) -> None:
        body = {"model": "tiny-r1", "prompt": ids, "max_tokens": 1}
        request = urllib.request.Request(server.url + "/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
        urllib.request.urlopen(request, timeout=120).read()

    asked = [[draw.randrange(900) for _ in range(tokens)] for _ in range(count)]
    start = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        list(pool.map(ask, asked))
    return count * tokens / (time.monotonic() - start)


def prefills(a: Server, b: Server, rounds: int) -> tuple[list[float], list[float], list[float]]:
    """Prompt tokens a second of both, and the longest pause of a stream of b while its other rank reads a long prompt."""
    one, two, pauses = [], [], []
    for i in range(-1, rounds):
        of_one, of_two = (prompts(server, i, 4, 2000) for server in (a, b))
        _, pause, _ = streams(b, 1, 300, lambda: prompts(b, 1000 + i, 1, 4000))
        if i >= 0:
            one.append(of_one)
            two.append(of_two)
            pauses.append(pause)
    return one, two, pauses


def round_trips(rounds: int) -> list[tuple[str, list[float]]]:
    """Of a batch of one at V2-Lite's widths, between two processes; median microseconds of each run."""
    subprocess.run(["ninja", "-C", ROOT / "build", "transport_benchmark"], check=True, stdout=subprocess.DEVNULL)
    rows = {}
    for _ in range(rounds):
        out = subprocess.run([ROOT / "build/bin/transport_benchmark", "--rounds", "5000"], stdout=subprocess.PIPE, check=True, text=True).stdout
        for wires in json.loads(out):
            looks = f" that look {wires['spin_us']} µs before they sleep" if wires["spin_us"] else ""
            trip = next(trip for trip in wires["round_trips"] if trip["name"] == "V2-Lite batch 1")
            rows.setdefault(f"round trip of a row for 6 experts of V2-Lite, {wires['wires']}{looks}", []).append(trip["median_us"])
    return list(rows.items())


def spread(values: list[float], scale: float, unit: str, digits: int = 0) -> str:
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle * scale:.{digits}f} {unit} ({low * scale:.{digits}f} .. {high * scale:.{digits}f})"


def machine() -> str:
    cpu = next(line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name"))
    return f"{cpu}, {os.cpu_count()} cores"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", action=Write, help="into tests/perf/WORLD.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        rows = [(what, spread(gaps, 1000, "ms")) for what, gaps in losses(Path(name), options.rounds)]
        with (Server(Path(name) / "one", "--threads", "2") as a,
              Server(Path(name) / "two", "--attention-ranks", "2", "--threads", "1") as b):
            whole(b, 2)
            one, two, coordinator = costs(a, b, options.rounds)
            one_prompts, two_prompts, pauses = prefills(a, b, options.rounds)
    rows += [("8 streams, one process × 2 threads", spread(one, 1, "tokens/s")),
             ("8 streams, two processes × 1 core, experts shared", spread(two, 1, "tokens/s")),
             ("ratio of the two", spread([b / a for a, b in zip(one, two)], 1, "×", 2)),
             ("4 prompts of 2,000 tokens, one process × 2 threads", spread(one_prompts, 1, "tokens/s")),
             ("4 prompts of 2,000 tokens, two processes × 1 core, experts shared", spread(two_prompts, 1, "tokens/s")),
             ("ratio of the two", spread([b / a for a, b in zip(one_prompts, two_prompts)], 1, "×", 2)),
             ("longest pause of a stream of these two while a prompt of 4,000 tokens is read", spread(pauses, 1000, "ms")),
             ("coordinator's CPU per token at 32 streams", spread(coordinator, 1e6, "µs")),
             *((what, spread(times, 1, "µs", 1)) for what, times in round_trips(options.rounds))]
    text = "\n".join([
        f"{machine()}, tiny-r1, {options.rounds} rounds: median (least .. greatest).",
        "2 attention ranks and 3 expert ranks in the rows of pauses; every answer was compared with the undisturbed one, token by token.",
        "", "| what | |", "|---|---|", *(f"| {what} | {value} |" for what, value in rows)])
    print(text)
    if options.write:
        write_section("Losses and costs", text, PAGE)


if __name__ == "__main__":
    main()
