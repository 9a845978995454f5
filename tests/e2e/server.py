"""Starts `epic serve` as a person would, on free ports, and tells when it is ready."""
from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(os.environ.get("EPIC_BIN", ROOT / "build" / "bin"))
MODEL = ROOT / "models" / "tiny-r1"
NAME = "tiny-r1"


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Server:
    """One `epic serve`; a context manager."""

    def __init__(self, log: Path, *flags: str, model: Path = MODEL, environment: dict[str, str] = {}):
        self.environment = os.environ | environment
        self.port, self.grpc_port, self.log = free_port(), free_port(), log
        self.operators = f"127.0.0.1:{free_port()}"
        self.command = [str(BIN / "epic"), "serve", str(model), "--served-model-name", NAME, "--port", str(self.port),
                        "--grpc-port", str(self.grpc_port), "--operators", self.operators, *flags]

    def __enter__(self) -> "Server":
        self.start()
        self.wait_ready()
        return self

    def start(self) -> None:
        self.process = subprocess.Popen(self.command, stdout=self.log.open("wb"), stderr=subprocess.STDOUT,
                                        stdin=subprocess.DEVNULL, env=self.environment)

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                raise

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def grpc(self) -> str:
        return f"127.0.0.1:{self.grpc_port}"

    def wait_ready(self, seconds: float = 90) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise RuntimeError(f"epic serve ended with {self.process.returncode}:\n{self.log.read_text()}")
            try:
                if self.get("/ready")[0] == 200:
                    return
            except OSError:
                pass
            time.sleep(0.05)
        raise RuntimeError(f"epic serve is not ready:\n{self.log.read_text()}")

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(self.url + path, timeout=20) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def post(self, path: str, body) -> tuple[int, dict]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    def metric(self, name: str) -> float:
        """The sum of a metric's samples."""
        lines = [line for line in self.get("/metrics")[1].split("\n") if line.split("{")[0].split(" ")[0] == name]
        assert lines, f"no metric {name}"
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines)

    def children(self, program: str) -> list[int]:
        """Process ids of the running `program`s that this server supervises."""
        listed = subprocess.run(["ps", "-o", "pid=,comm=", "--ppid", str(self.process.pid)], capture_output=True, text=True)
        return [int(line.split()[0]) for line in listed.stdout.splitlines() if program.startswith(line.split()[1][:15])
                and "defunct" not in line]
