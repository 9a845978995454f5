"""A world of ranks under mpirun, each with a share of the experts; the coordinator, outside of it, keeps the requests."""
from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from server import BIN, MODEL, NAME, Server, free_port
from test_serve import tokens_of

RANKS = 4


def has_mpi() -> bool:
    if shutil.which("mpirun") is None:
        return False
    told = subprocess.run([BIN / "epic-worker", "--model", "none", "--exchange", "mpi"], capture_output=True, text=True)
    return "built without it" not in told.stderr


pytestmark = pytest.mark.skipif(not has_mpi(), reason="MPI is not found")


class MpiServer(Server):
    """A coordinator, and ranks under mpirun, which are started anew by `start_world`."""

    def __init__(self, folder):
        super().__init__(folder / "coordinator.log")
        self.control, self.folder, self.worlds = f"127.0.0.1:{free_port()}", folder, []
        self.command = [str(BIN / "epic-coordinator"), "--model", str(MODEL), "--served-model-name", NAME, "--port", str(self.port),
                        "--grpc-port", str(self.grpc_port), "--control", self.control, "--operators", f"unix:{folder}/operators"]

    def __enter__(self) -> "MpiServer":
        self.process = subprocess.Popen(self.command, stdout=self.log.open("wb"), stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        self.start_world()
        self.wait_ready()
        return self

    def __exit__(self, *raised):
        for world in self.worlds:
            if world.poll() is None:
                world.terminate()
                world.wait(30)
        super().__exit__(*raised)

    def start_world(self) -> None:
        # More ranks than cores, and any user.
        flags = ["-n", str(RANKS), "--oversubscribe", "--bind-to", "none"]
        allowed = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
        worker = [BIN / "epic-worker", "--model", MODEL, "--coordinator", self.control, "--exchange", "mpi", "--local-ranks", str(RANKS),
                  "--kv-cache-memory", "64MiB", "--exit-with-parent"]
        log = (self.folder / f"world{len(self.worlds)}.log").open("wb")
        self.worlds.append(subprocess.Popen(["mpirun", *flags, *worker], stdout=log, stderr=subprocess.STDOUT,
                                            stdin=subprocess.DEVNULL, env=os.environ | allowed))

    def ranks(self) -> list[int]:
        """Process ids of the newest world."""
        listed = subprocess.run(["ps", "-o", "pid=,comm=", "--ppid", str(self.worlds[-1].pid)], capture_output=True, text=True)
        return [int(line.split()[0]) for line in listed.stdout.splitlines() if line.split()[1] == "epic-worker"]

    def wait_ranks(self) -> None:
        """Until the coordinator can use all ranks."""
        end = time.monotonic() + 60
        while self.log.read_text().count(" ready: rank ") < RANKS * len(self.worlds):
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.05)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with MpiServer(tmp_path_factory.mktemp("mpi")) as running:
        running.wait_ranks()
        yield running


def draws(url: str, seed: int, length: int) -> list[int]:
    client = openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=0, timeout=120)
    answer = client.completions.create(model=NAME, prompt="Once upon a time " * length, temperature=2, seed=seed, max_tokens=24,
                                       extra_body={"return_token_ids": True, "ignore_eos": True})
    return answer.choices[0].token_ids


def test_every_rank_gives_the_tokens_of_one_rank_alone(server, world):
    # Prompts of one row to several tiles, side by side: the coordinator spreads them over the ranks.
    asked = [(seed, length) for seed, length in enumerate((1, 2, 40, 150, 3, 1, 80, 7))]
    with ThreadPoolExecutor(len(asked)) as pool:
        got = list(pool.map(lambda a: draws(world.url, *a), asked))
    assert got == [draws(server.url, *a) for a in asked]
    assert all(len(tokens) == 24 for tokens in got)


def test_a_world_at_rest_sleeps(world):
    def ticks() -> list[int]:
        return [sum(int(x) for x in open(f"/proc/{pid}/stat").read().split()[13:15]) for pid in world.ranks()]

    before = ticks()
    time.sleep(4)
    used = [b - a for a, b in zip(before, ticks())]
    assert len(used) == RANKS
    # A rank that polled without a pause would use a good part of a core's 400 ticks.
    assert max(used) < 60


@pytest.mark.parametrize("harm", [signal.SIGKILL, signal.SIGSTOP])
def test_a_rank_that_dies_or_hangs_ends_the_world_and_the_next_goes_on_with_the_same_tokens(server, world, harm):
    world.wait_ranks()
    want = tokens_of(server)
    resubmitted = world.metric("epic_resubmissions_total")
    killed = []

    def kill(count):
        if count == 40 and not killed:
            killed.append(world.ranks()[2])
            os.kill(killed[0], harm)
            threading.Thread(target=restart).start()

    def restart():
        ended.append(world.worlds[-1].wait(60))
        world.start_world()

    ended = []
    assert tokens_of(world, kill) == want
    assert len(killed) == 1 and ended[0] != 0
    assert world.metric("epic_replay_mismatch_total") == 0
    assert world.metric("epic_resubmissions_total") > resubmitted
    # The world's end is one loss, however long its processes took.
    assert "its epoch has ended with rank" in world.log.read_text()


def test_sigterm_to_all_ranks_ends_the_world_in_order(world):
    world.wait_ranks()
    for pid in world.ranks():
        os.kill(pid, signal.SIGTERM)
    assert world.worlds[-1].wait(60) == 0
