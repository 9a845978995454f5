"""What operators see and do: `epic admin`, `epic top`, the event log, join tokens."""
from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time

import pytest
from server import BIN, MODEL, Server, free_port


def admin(address, *words):
    result = subprocess.run([BIN / "epic", "admin", "--operators", address, *words], capture_output=True, text=True, timeout=60)
    return result.returncode, result.stdout + result.stderr


def ranks(address):
    """The state of each rank, by number."""
    lines = admin(address, "state")[1].splitlines()
    heading = next(i for i, line in enumerate(lines) if line.startswith("rank "))
    return {line.split()[0]: line.split()[2] for line in lines[heading + 1:]}


def wait_for(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never happens"
        time.sleep(0.05)


def test_operators_see_and_steer(tmp_path):
    log = tmp_path / "events"
    with Server(tmp_path / "log", "--event-log", str(log)) as server:
        address = server.operators
        code, state = admin(address, "state")
        assert code == 0 and state.startswith("ready\n")
        assert " ready " in state
        # The one rank that there is cannot be drained; it can be killed and fenced, and comes back as a new one.
        code, why = admin(address, "drain", "0")
        assert code == 1 and "lack 96 slots" in why
        assert admin(address, "fence", "9") == (1, "error: there is no rank 9\n")
        os.kill(server.children("epic-worker")[0], signal.SIGKILL)
        wait_for(lambda: ranks(address) == {"1": "ready"})
        assert admin(address, "fence", "1")[0] == 0
        wait_for(lambda: ranks(address) == {"2": "ready"})
        assert admin(address, "freeze")[0] == 0
        assert "frozen" in admin(address, "state")[1]
        assert admin(address, "freeze", "--off")[0] == 0
        code, events = admin(address, "events")
        kinds = [line.split("  ")[2] for line in events.splitlines()]
        # A successor may join before its predecessor counts as lost.
        assert sorted(k for k in kinds if k in ("join", "lost", "revoke", "freeze")) == \
            ["freeze", "freeze", "join", "join", "join", "lost", "revoke"]
        # The file is written on a thread of its own.
        wait_for(lambda: len(log.read_text().splitlines()) == len(kinds))
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        assert [line["kind"] for line in lines] == kinds
        assert [line["number"] for line in lines] == list(range(1, len(lines) + 1))
        follow = subprocess.Popen([BIN / "epic", "admin", "--operators", address, "events", "-f"], stdout=subprocess.PIPE, text=True)
        seen = [follow.stdout.readline() for _ in kinds]
        assert "".join(seen) == events
        top = subprocess.Popen([BIN / "epic", "top", "--operators", address, "--interval", "0.1"], stdout=subprocess.PIPE, text=True)
        time.sleep(0.5)
        top.send_signal(signal.SIGINT)
        out, _ = top.communicate(timeout=20)
        assert top.returncode == 0 and "activity" in out and "freeze" in out
        for name in ("epic_ranks", "epic_frozen", "epic_rank_last_report_age_seconds", "epic_event_log_failed_writes_total"):
            server.metric(name)
        follow.kill()


@contextlib.contextmanager
def coordinator(tmp_path, *flags):
    command = [BIN / "epic-coordinator", "--model", MODEL, "--port", str(free_port()), "--grpc-port", str(free_port()),
               "--operators", f"unix:{tmp_path}/operators", *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        wait_for(lambda: admin(f"unix:{tmp_path}/operators", "state")[0] == 0)
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


@pytest.mark.parametrize("flags, says", [((), "--join-token-file is needed"), (("--join-token-file", "TOKEN"), "--insecure is needed"),
                                         (("--join-token-file", "SHORT"), "at least 16")])
def test_a_control_listener_that_others_reach_needs_a_token(tmp_path, flags, says):
    (tmp_path / "TOKEN").write_text("0123456789abcdef")
    (tmp_path / "SHORT").write_text("0123")
    command = [BIN / "epic-coordinator", "--model", MODEL, "--control", f"0.0.0.0:{free_port()}", *flags]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert result.returncode == 1 and says in result.stderr


def test_a_worker_joins_with_the_same_token_only(tmp_path):
    right, wrong = tmp_path / "right", tmp_path / "wrong"
    right.write_text("0123456789abcdef\n")
    wrong.write_text("fedcba9876543210\n")
    control = f"unix:{tmp_path}/control"
    worker = [BIN / "epic-worker", "--model", MODEL, "--coordinator", control]
    with coordinator(tmp_path, "--control", control, "--join-token-file", right):
        for flags, says in [((), "give --join-token-file"), (("--join-token-file", wrong), "join token")]:
            result = subprocess.run([*worker, *flags], capture_output=True, text=True, timeout=60)
            assert result.returncode == 1 and says in result.stderr
        joined = subprocess.Popen([*worker, "--join-token-file", right], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for(lambda: admin(f"unix:{tmp_path}/operators", "state")[1].startswith("ready"))
        joined.send_signal(signal.SIGTERM)
        assert joined.wait(30) == 0


def test_with_a_state_folder_each_life_has_a_higher_term(tmp_path):
    state = tmp_path / "state"
    state.mkdir()
    for life in (1, 2):
        with Server(tmp_path / "log", "--state-dir", str(state)):
            assert f"term {life}, kept in {state}" in (tmp_path / "log").read_text()
            assert (state / "TERM").read_text() == f"{life}\n"
