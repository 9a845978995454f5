"""Ranks come and go while streams run: they take their share, no token changes, and nobody who stays grows."""
from __future__ import annotations

import concurrent.futures
import random
import threading
import time

from ranks import Footprint, Ranks
from test_world import ask, ask_all, expected  # noqa: F401

CYCLES = 25
WARM_UP = 5


class Load:
    """Streams without end; what they answer must be what one rank answers."""

    def __init__(self, server, expected, streams=4):  # noqa: F811
        self.server, self.expected, self.answers, self.over = server, expected, 0, threading.Event()
        self.pool = concurrent.futures.ThreadPoolExecutor(streams)
        self.streams = [self.pool.submit(self.run, number) for number in range(streams)]

    def run(self, number):
        while not self.over.is_set():
            assert ask(self.server, number) == self.expected[number]
            self.answers += 1

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.over.set()
        for stream in self.streams:
            stream.result()
        self.pool.shutdown()


def test_ranks_join_under_load(tmp_path, expected):  # noqa: F811
    with Ranks(tmp_path, ["attention", "experts", "experts"], "--expect-ranks", "3") as server:
        with Load(server, expected):
            for rank, roles in ((3, "experts"), (4, "attention"), (5, "attention,experts")):
                server.join(roles)
                server.wait_whole(rank + 1)
                if "experts" in roles:
                    server.wait_for(lambda: server.metric_of("epic_rank_experts_held", rank) > 0)
                    server.wait_for(lambda: server.metric_of("epic_rank_expert_rows_served_total", rank) > 0)
                if "attention" in roles:
                    server.wait_for(lambda: server.metric_of("epic_rank_steps_total", rank) > 0)
            # Those who were first may go, one by one: what they had is elsewhere by then.
            for lost, worker in enumerate(server.workers[:2], start=1):
                server.kill(worker)
                server.wait_whole(6 - lost, lost)
        assert server.metric("epic_replay_mismatch_total") == 0


def test_a_rank_that_comes_back_again_and_again_leaves_nothing_behind(tmp_path, expected):  # noqa: F811
    draw = random.Random(1)
    with Ranks(tmp_path, ["attention", "experts", "attention", "experts", "experts"], "--expect-ranks", "5") as server:
        server.wait_whole(5)
        stay = {"coordinator": server.process.pid, "attention rank": server.workers[0].pid, "expert rank": server.workers[1].pid}
        at_warm = {}
        for cycle in range(CYCLES):
            victim = draw.choice(server.workers[2:])
            roles = victim.args[victim.args.index("--roles") + 1]

            def harm():
                time.sleep(draw.uniform(0.02, 0.1))
                server.kill(victim)
                server.join(roles)

            assert ask_all(server, count=4, max_tokens=60, meanwhile=harm) == [ids[:60] for ids in expected[:4]]
            server.wait_whole(5, lost=cycle + 1)
            if cycle == WARM_UP:
                at_warm = {name: Footprint.of(pid) for name, pid in stay.items()}
        for name, pid in stay.items():
            before, after = at_warm[name], Footprint.of(pid)
            assert after.descriptors <= before.descriptors + 2, (name, before, after)
            assert after.resident_bytes <= before.resident_bytes + (8 << 20), (name, before, after)
        assert server.metric("epic_workers_lost_total") == CYCLES
        assert server.metric("epic_replay_mismatch_total") == 0


def refusal(server, *flags):
    """What a worker says that is not taken."""
    stranger = server.join("attention,experts", "--expert-ranks", "1", *flags)
    assert stranger.wait(30) != 0
    assert len(server.states()) == 1
    return stranger.log.read_text()


def test_ranks_of_another_numeric_profile_are_refused_by_name(tmp_path):
    cpu = set(next(line for line in open("/proc/cpuinfo") if line.startswith("flags")).split())
    fma = ("--numerics", "fma", "--expert-ranks", "1")
    needs = {"avx512-bf16": {"avx512_bf16", "avx512vbmi"}, "amx-bf16": {"amx_tile", "amx_bf16"}}
    with Ranks(tmp_path, ["attention,experts"], "--expect-ranks", "1", worker_flags=fma) as server:
        for flags, differs in ((("--numerics", "fma", "--kv-cache-dtype", "fp8"), "kv:fp8"),
                               (("--numerics", "fma", "--quantization", "int8"), "w:int8")):
            why = refusal(server, *flags)
            assert "this world" in why and differs in why and "kv:bf16" in why
        for family, flags in needs.items():
            why = refusal(server, "--numerics", family)
            # A machine that has not the family says so before it loads anything.
            assert (f"/{family}/" in why and "/fma/" in why) if flags <= cpu else f"--numerics: family {family} cannot run" in why, why
        # Machines of several families become one world through the one that all have.
        server.join("attention,experts")
        server.wait_whole(2)
        assert len(ask(server, 0, max_tokens=8)) == 8
