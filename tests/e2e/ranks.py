"""A coordinator and workers that join it one by one, as an operator starts them."""
from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from server import BIN, MODEL, NAME, Server, free_port


@dataclass
class Footprint:
    """What a process holds of the machine."""
    descriptors: int
    resident_bytes: int

    @staticmethod
    def of(pid: int) -> "Footprint":
        resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        return Footprint(len(os.listdir(f"/proc/{pid}/fd")), resident)


class Ranks(Server):
    """`join` and `kill` as often as one likes; a context manager that is ready when the first workers are."""

    def __init__(self, folder: Path, roles: list[str], *flags: str,
                 worker_flags: tuple[str, ...] = ("--expert-ranks", "3")):
        super().__init__(folder / "coordinator.log")
        self.folder, self.first, self.worker_flags = folder, roles, worker_flags
        self.workers, self.number = [], itertools.count()
        self.control = f"127.0.0.1:{free_port()}"
        self.command = [str(BIN / "epic-coordinator"), "--model", str(MODEL), "--served-model-name", NAME, "--port", str(self.port),
                        "--grpc-port", str(self.grpc_port), "--control", self.control, "--operators", self.operators, *flags]

    def __enter__(self) -> "Ranks":
        self.start()
        try:
            self.wait_for(self.listens)  # before workers take ports
            for roles in self.first:
                self.join(roles)
            self.wait_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *raised):
        self.end_workers()
        super().__exit__(*raised)

    def listens(self) -> bool:
        try:
            return self.get("/ready")[0] > 0
        except OSError:
            return self.process.poll() is not None  # wait_ready says why

    def join(self, roles: str, *flags: str) -> subprocess.Popen:
        """Starts a worker; `flags` instead of those of all."""
        command = [BIN / "epic-worker", "--model", MODEL, "--coordinator", self.control, "--roles", roles,
                   "--threads", "1", "--run-dir", self.folder, "--kv-cache-memory", "64MiB", *(flags or self.worker_flags)]
        log = self.folder / f"worker{next(self.number)}.log"
        with log.open("wb") as out:
            worker = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        worker.log = log
        self.workers.append(worker)
        return worker

    def kill(self, worker: subprocess.Popen) -> None:
        worker.kill()
        worker.wait()
        self.workers.remove(worker)

    def end_workers(self) -> None:
        for worker in list(self.workers):
            self.kill(worker)

    def states(self) -> list[dict]:
        return json.loads(self.get("/ready")[1])["ranks"]

    def wait_for(self, condition, seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                raise RuntimeError(f"it never happens:\n{self.log.read_text()[-4000:]}")
            time.sleep(0.02)

    def wait_whole(self, ranks: int, lost: int = 0) -> None:
        """Until so many have been noticed to be lost, so many are there, all are ready, and every expert is held."""
        def whole() -> bool:
            return self.metric("epic_workers_lost_total") >= lost and [rank["state"] for rank in self.states()] == ["ready"] * ranks \
                and self.metric("epic_experts_unhosted") == 0
        self.wait_for(whole)

    def metric_of(self, name: str, rank: int) -> float:
        found = re.search(rf'^{name}{{[^}}]*\brank="{rank}"[^}}]*}} (\S+)$', self.get("/metrics")[1], re.M)
        return float(found[1]) if found else 0.0
