"""A world of several hosts, which are network namespaces here: links are cut one way while answers are computed, and no token changes."""
from __future__ import annotations

import os
import subprocess
import time

import pytest
from server import BIN, MODEL, NAME, Server, free_port
from test_world import ask_all, expected, wait_whole  # noqa: F401

NET = f"10.77.{os.getpid() % 200 + 1}"
ROLES = {2: "attention", 3: "attention", 4: "experts", 5: "experts", 6: "experts"}
COORDINATOR = 1


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


def host(number: int) -> str:
    return f"epic{os.getpid()}h{number}"


def address(number: int) -> str:
    return f"{NET}.{number}"


class Hosts:
    """Namespaces on one bridge; this process is on it too, as host 254."""

    def __enter__(self) -> "Hosts":
        self.switch, self.links = host(0), []
        ip("netns", "add", self.switch)
        ip("-n", self.switch, "link", "add", "bridge", "type", "bridge")
        ip("-n", self.switch, "link", "set", "bridge", "up")
        for number in (COORDINATOR, *ROLES):
            ip("netns", "add", host(number))
            self.join(number, ["-n", host(number)])
            ip("-n", host(number), "link", "set", "lo", "up")
        self.join(254, [])
        return self

    def join(self, number: int, where: list[str]) -> None:
        link, port = f"ep{os.getpid()}n{number}"[-15:], f"port{number}"
        ip("link", "add", link, "type", "veth", "peer", "name", port, "netns", self.switch)
        if where:
            ip("link", "set", link, "netns", host(number))
        ip(*where, "addr", "add", f"{address(number)}/24", "dev", link)
        ip(*where, "link", "set", link, "up")
        ip("-n", self.switch, "link", "set", port, "master", "bridge")
        ip("-n", self.switch, "link", "set", port, "up")

    def __exit__(self, *_):
        for number in (0, COORDINATOR, *ROLES):
            subprocess.run(["ip", "netns", "del", host(number)], capture_output=True)


class HostsServer(Server):
    """A coordinator and five workers, each on a host of its own, as an operator starts them."""

    def __init__(self, folder):
        super().__init__(folder / "coordinator.log")
        self.folder, self.workers = folder, {}
        self.token = folder / "token"
        self.token.write_text("a secret of sixteen bytes or more\n")
        self.control = f"{address(COORDINATOR)}:{free_port()}"
        self.operators = f"{address(COORDINATOR)}:{free_port()}"
        self.command = [*self.on(COORDINATOR), str(BIN / "epic-coordinator"), "--model", str(MODEL), "--served-model-name", NAME, "--host",
                        address(COORDINATOR), "--port", str(self.port), "--grpc-port", str(self.grpc_port), "--control", self.control,
                        "--operators", f"unix:{folder}/operators", "--expect-ranks", str(len(ROLES)), "--join-token-file", str(self.token),
                        "--insecure"]

    @staticmethod
    def on(number: int) -> list[str]:
        return ["ip", "netns", "exec", host(number)]

    @property
    def url(self) -> str:
        return f"http://{address(COORDINATOR)}:{self.port}"

    def __enter__(self) -> "HostsServer":
        for number, roles in ROLES.items():
            command = [*self.on(number), BIN / "epic-worker", "--model", MODEL, "--coordinator", self.control, "--roles", roles,
                       "--expert-ranks", "3", "--local-ranks", str(len(ROLES)), "--transport", "tcp", "--exchange-address",
                       f"{address(number)}:0", "--kv-cache-memory", "64MiB", "--join-token-file", self.token]
            self.workers[number] = subprocess.Popen(command, stdout=(self.folder / f"worker{number}.log").open("wb"),
                                                    stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        return super().__enter__()

    def __exit__(self, *raised):
        for worker in self.workers.values():
            worker.kill()
            worker.wait()
        super().__exit__(*raised)


def cut(source: int, destination: int, how: str = "add") -> None:
    """Nothing that `source` sends reaches `destination`; what comes back does."""
    ip("-n", host(source), "route", how, "blackhole", f"{address(destination)}/32")


@pytest.fixture(scope="module")
def hosts_server(tmp_path_factory):
    try:
        hosts = Hosts().__enter__()
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"network namespaces cannot be made here (root is needed): {error}")
    try:
        with HostsServer(tmp_path_factory.mktemp("hosts")) as server:
            yield server
    finally:
        hosts.__exit__()


@pytest.mark.parametrize("cuts", [
    [],
    [(4, 2)],                # an expert rank's answers do not reach an attention rank
    [(2, 4)],                # its rows do not reach the expert rank
    [(5, 2), (5, 3)],        # two ranks miss the same one
    [(6, COORDINATOR)],      # a rank works, and cannot say so
    [(COORDINATOR, 3)],      # an attention rank hears nothing new
], ids=str)
def test_a_link_that_is_cut_one_way_changes_no_token(hosts_server, expected, cuts):  # noqa: F811
    wait_whole(hosts_server, len(ROLES))

    def harm():
        time.sleep(0.2)
        for pair in cuts:
            cut(*pair)
        time.sleep(4)
        for pair in cuts:
            cut(*pair, how="del")

    assert ask_all(hosts_server, meanwhile=harm) == expected
    wait_whole(hosts_server, len(ROLES))
    assert hosts_server.metric("epic_replay_mismatch_total") == 0
