"""Many ranks: whatever the world's shape, and whoever dies in it, the tokens are those of one rank."""
from __future__ import annotations

import concurrent.futures
import json
import os
import random
import re
import signal
import time

import pytest
from server import ROOT, Server

QUESTIONS = ["What is 358 + 467?", "Write 42 in Roman numerals.", "Reverse the word planet.", "How often is the letter e in elephant?",
             "Sort these numbers: 5, 2, 9.", "What is 17 + 5?", "Write 1994 in Roman numerals.", "Reverse the word window."]


def ask(server, number, max_tokens=160):
    """The token ids of one question, drawn with a seed of its own."""
    status, answer = server.post("/v1/chat/completions", {
        "model": "tiny-r1", "messages": [{"role": "user", "content": QUESTIONS[number % len(QUESTIONS)]}], "temperature": 0.9,
        "seed": number, "max_tokens": max_tokens, "ignore_eos": True, "return_token_ids": True})
    assert status == 200, answer
    assert answer["choices"][0]["finish_reason"] == "length"
    ids = answer["choices"][0]["token_ids"]
    assert len(ids) == max_tokens
    return ids


def ask_all(server, count=8, max_tokens=160, meanwhile=lambda: None):
    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        answers = [pool.submit(ask, server, number, max_tokens) for number in range(count)]
        meanwhile()
        return [answer.result() for answer in answers]


@pytest.fixture(scope="module")
def expected(server):
    """What one rank answers."""
    return ask_all(server)


def world(tmp_path, attention, experts, *flags, environment={}):
    return Server(tmp_path / "log", "--attention-ranks", str(attention), "--expert-ranks", str(experts), *flags,
                  environment=environment)


def wait_whole(server, ranks, lost=0, seconds=60):
    """Until so many ranks are ready, and so many have been noticed to be lost."""
    end = time.monotonic() + seconds
    while server.metric("epic_workers_lost_total") < lost or \
            sum(r["state"] == "ready" for r in json.loads(server.get("/ready")[1])["ranks"]) < ranks:
        assert time.monotonic() < end, server.get("/ready")
        time.sleep(0.05)


def workers(server, role):
    """Process ids of the workers with exactly these roles."""
    found = []
    for pid in server.children("epic-worker"):
        try:
            command = open(f"/proc/{pid}/cmdline").read().split("\0")
        except OSError:
            continue  # it has just ended
        if "--roles" in command and command[command.index("--roles") + 1] == role:
            found.append(pid)
    return found


@pytest.mark.parametrize("attention, experts, flags", [(2, 0, ()), (1, 2, ()), (2, 4, ()), (3, 5, ()), (1, 2, ("--transport", "tcp")),
                                                       (1, 2, ("--transport", "shm")), (1, 0, ("--transport", "shm"))])
def test_every_shape_gives_the_same_tokens(tmp_path, expected, attention, experts, flags):
    with world(tmp_path, attention, experts, *flags) as server:
        assert ask_all(server) == expected
        assert server.metric("epic_replay_mismatch_total") == 0


@pytest.mark.parametrize("role, sent", [("experts", signal.SIGKILL), ("attention", signal.SIGKILL), ("experts", signal.SIGSTOP),
                                        ("attention", signal.SIGSTOP)])
def test_a_lost_rank_changes_no_token(tmp_path, expected, role, sent):
    draw = random.Random(f"{role} {sent}")
    with world(tmp_path, 2, 3) as server:
        for lost in range(3):
            def harm():
                time.sleep(draw.uniform(0.05, 0.4))
                victim = draw.choice(workers(server, role))
                os.kill(victim, sent)
                if sent == signal.SIGSTOP:
                    time.sleep(5)
                    os.kill(victim, signal.SIGCONT)

            wait_whole(server, 5, lost)
            assert ask_all(server, meanwhile=harm) == expected
        wait_whole(server, 5, 3)
        assert server.metric("epic_replay_mismatch_total") == 0


def test_a_rank_with_both_roles_may_die(tmp_path, expected):
    with world(tmp_path, 3, 0) as server:
        def harm():
            time.sleep(0.2)
            os.kill(workers(server, "attention,experts")[0], signal.SIGKILL)

        assert ask_all(server, meanwhile=harm) == expected
        assert server.metric("epic_replay_mismatch_total") == 0


def failpoints():
    """The names in base/failpoint.cc: a new one is tested from its first day."""
    source = (ROOT / "base/failpoint.cc").read_text()
    return re.findall(r'"([a-z-]+)"', source[source.index("kNames[] = {"):source.index("};", source.index("kNames[] = {"))])


@pytest.mark.parametrize("how", ["kill", "stop"])
@pytest.mark.parametrize("name", failpoints())
def test_a_rank_may_fail_anywhere(tmp_path, expected, name, how):
    draw = random.Random(f"{name} {how}")
    # Some places are passed by the thousand, some a few times in a rank's life.
    rare = {"map-taken": 1, "sequence-started": 3, "expert-loaded": 30, "step-computed": 60, "step-reported": 60}
    passes = draw.randint(1, rare.get(name, 300))
    environment = {"EPIC_FAILPOINT": f"{name}:{how}@{passes}", "EPIC_FAILPOINT_ONCE": str(tmp_path / "once")}
    with world(tmp_path, 2, 3, environment=environment) as server:
        assert ask_all(server, max_tokens=80) == [ids[:80] for ids in expected]
        assert (tmp_path / "once").exists(), f"nobody passed {name} {passes} times"
        assert server.metric("epic_replay_mismatch_total") == 0
