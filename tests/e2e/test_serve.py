"""`epic serve` as a platform engineer meets it: bad models, busy ports, deaths, drains, vanished clients."""
from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time

import openai
import pytest
from server import BIN, MODEL, Server, free_port

COUNTING = {"model": "tiny-r1", "messages": [{"role": "user", "content": "What is 358 + 467?"}], "temperature": 0.7,
            "seed": 11, "max_tokens": 600, "stream": True, "ignore_eos": True, "return_token_ids": True}


def serve(model, *flags, seconds=60):
    command = [BIN / "epic", "serve", model, "--port", str(free_port()), "--grpc-port", str(free_port()),
               "--operators", f"127.0.0.1:{free_port()}", *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=seconds)


def tokens_of(server, on_token=lambda count: None):
    """The text that the counting request streams, and its finish reason."""
    client = openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=120)
    text, finish, count = "", None, 0
    body = {k: v for k, v in COUNTING.items() if k not in ("ignore_eos", "return_token_ids")}
    for chunk in client.chat.completions.create(**body, extra_body={"ignore_eos": True}):
        for choice in chunk.choices:
            piece = (getattr(choice.delta, "reasoning_content", None) or "") + (choice.delta.content or "")
            text += piece
            count += bool(piece)
            finish = choice.finish_reason or finish
            on_token(count)
    return text, finish


def broken(tmp_path, **changes):
    folder = tmp_path / "model"
    shutil.copytree(MODEL, folder)
    for name, change in changes.items():
        path = folder / name.replace("_dot_", ".")
        path.write_bytes(change(path.read_bytes()))
    return folder


def edited(**fields):
    return lambda data: json.dumps(json.loads(data) | fields).encode()


@pytest.mark.parametrize("changes, says", [
    ({"model_dot_safetensors": lambda data: data[:1000]}, "model.safetensors"),
    ({"model_dot_safetensors": lambda data: data[:-4096]}, "model.safetensors"),
    ({"model_dot_safetensors": lambda data: b"\xff" * 8 + data[8:]}, "model.safetensors"),
    ({"config_dot_json": edited(model_type="llama")}, "llama"),
    ({"config_dot_json": edited(rope_scaling={"type": "spiral", "factor": 4})}, "spiral"),
    ({"config_dot_json": edited(hidden_size=-1)}, "hidden_size"),
    ({"config_dot_json": edited(kv_lora_rank=96)}, "kv_a_proj_with_mqa"),
    ({"config_dot_json": lambda data: data[:50]}, "config.json"),
    ({"tokenizer_dot_json": lambda data: b"{}"}, "tokenizer.json"),
])
def test_a_broken_model_is_refused_by_name(tmp_path, changes, says):
    result = serve(broken(tmp_path, **changes))
    assert result.returncode not in (0, -signal.SIGSEGV)
    assert says in result.stdout + result.stderr


def test_a_missing_model_is_refused():
    result = serve("no-such-model")
    assert result.returncode != 0
    assert "no-such-model" in result.stderr + result.stdout


def test_dry_run_prints_the_memory_plan_and_serves_nothing():
    result = serve(MODEL, "--dry-run")
    out = result.stdout + result.stderr
    assert result.returncode == 0, out
    for word in ("weights", "KV"):
        assert word.lower() in out.lower()


def test_a_shortfall_of_memory_is_told_before_loading():
    result = serve(MODEL, "--kv-cache-memory", "4096GiB")
    assert result.returncode != 0
    assert "GiB" in result.stdout + result.stderr


def test_a_busy_port_is_told():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = subprocess.run([BIN / "epic", "serve", MODEL, "--port", str(port), "--grpc-port", str(free_port()),
                                 "--operators", f"127.0.0.1:{free_port()}"],
                                capture_output=True, text=True, timeout=60)
    assert result.returncode != 0
    assert str(port) in result.stdout + result.stderr


def test_killing_the_worker_changes_no_token(tmp_path):
    with Server(tmp_path / "log") as server:
        want, finish = tokens_of(server)
        assert finish == "length"
        killed = []

        def kill(count):
            if count in (40, 250) and len(killed) < (1 if count == 40 else 2):
                killed.extend(server.children("epic-worker")[:1])
                os.kill(killed[-1], signal.SIGKILL)

        got, finish = tokens_of(server, kill)
        assert len(killed) == 2
        assert (got, finish) == (want, "length")
        assert server.metric("epic_replay_mismatch_total") == 0


def test_ctrl_c_drains(tmp_path):
    with Server(tmp_path / "log", "--shutdown-timeout", "30") as server:
        want, _ = tokens_of(server)
        interrupted = threading.Event()

        def interrupt(count):
            if count == 20 and not interrupted.is_set():
                interrupted.set()
                server.process.send_signal(signal.SIGINT)

        got, finish = tokens_of(server, interrupt)
        assert (got, finish) == (want, "length")
        assert server.process.wait(30) == 0


def test_vanished_clients_leave_nothing_behind(server):
    body = json.dumps(COUNTING | {"max_tokens": 3000}).encode()
    head = (f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n").encode()
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", server.port)) as gone:
            gone.sendall(head + body)
            gone.recv(200)
    end = time.monotonic() + 30
    while server.metric("vllm:num_requests_running") + server.metric("vllm:num_requests_waiting") > 0 \
            or server.metric("vllm:kv_cache_usage_perc") > 0:
        assert time.monotonic() < end, "requests of vanished clients still run"
        time.sleep(0.1)


def test_hostile_bytes_harm_nobody(server):
    for junk in (b"\x00" * 4096, os.urandom(65536), b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 100000, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
                 b"POST /v1/completions HTTP/1.1\r\nContent-Length: 99999999999999\r\n\r\n"):
        for port in (server.port, server.grpc_port):
            with socket.create_connection(("127.0.0.1", port)) as s:
                s.settimeout(5)
                try:
                    s.sendall(junk)
                    s.recv(1000)
                except OSError:
                    pass
    assert server.get("/ready")[0] == 200


def test_chat_and_complete(server):
    chat = subprocess.run([BIN / "epic", "chat", "--server", server.grpc, "--temperature", "0", "What is 358 + 467?"],
                          capture_output=True, text=True, timeout=60)
    assert chat.returncode == 0, chat.stderr
    assert "write 5, carry 1" in chat.stdout and chat.stdout.endswith("358 + 467 = 825\n")
    talk = subprocess.run([BIN / "epic", "chat", "--server", server.grpc, "--temperature", "0"], capture_output=True, text=True,
                          input="Hi, my name is Ana, I live in Porto and I like blue.\nWhere do I live?\n", timeout=60)
    assert "You live in Porto." in talk.stdout
    complete = subprocess.run([BIN / "epic", "complete", "--server", server.grpc, "--max-tokens", "4", "What is"],
                              capture_output=True, text=True, timeout=60)
    assert complete.returncode == 0 and complete.stdout.strip()
    nobody = subprocess.run([BIN / "epic", "chat", "--server", f"127.0.0.1:{free_port()}", "x"], capture_output=True, text=True,
                            timeout=60)
    assert nobody.returncode == 1 and "error" in nobody.stderr


def test_secrets_are_on_no_command_line(tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("key-of-the-file\nanother\n")
    with Server(tmp_path / "log", "--api-key", "key-of-the-flag", "--api-key-file", str(keys),
                environment={"EPIC_API_KEYS": "key-of-the-environment,more"}) as server:
        pids = [server.process.pid, *server.children("epic-coordinator"), *server.children("epic-worker")]
        lines = {pid: open(f"/proc/{pid}/cmdline").read() for pid in pids}
        assert len(lines) == 3
        assert not any(word in line for pid, line in lines.items() for word in ("key-of-the-file", "key-of-the-environment"))
        assert [pid for pid, line in lines.items() if "key-of-the-flag" in line] == [server.process.pid]  # as it was typed
        for key, works in [("key-of-the-flag", True), ("key-of-the-file", True), ("another", True), ("key-of-the-environment", True),
                           ("more", True), ("wrong", False), ("", False)]:
            client = openai.OpenAI(base_url=server.url + "/v1", api_key=key or "x", max_retries=0)
            if works:
                assert client.models.list().data
            else:
                with pytest.raises(openai.AuthenticationError):
                    client.models.list()


@pytest.mark.parametrize("flags, environment, says", [
    (["--api-key", ""], {}, "--api-key"),
    (["--api-key-file", "/dev/null"], {}, "--api-key-file"),
    (["--api-key-file", ""], {}, "--api-key-file"),
    (["--api-key-file", "no-such-file"], {}, "no-such-file"),
    ([], {"EPIC_API_KEYS": ""}, "EPIC_API_KEYS"),
    ([], {"EPIC_API_KEY": ""}, "EPIC_API_KEY"),
])
def test_an_empty_secret_is_refused(flags, environment, says):
    command = [BIN / "epic", "serve", MODEL, "--port", str(free_port()), "--grpc-port", str(free_port()),
               "--operators", f"127.0.0.1:{free_port()}", *flags]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, env=os.environ | environment)
    assert result.returncode not in (0, -signal.SIGSEGV)
    assert says in result.stdout + result.stderr
    assert "giving up" not in result.stderr, "it is said before anything is started"


def test_a_worker_that_dies_ten_times_in_a_minute_loses_no_request(tmp_path):
    """It is started again ever more slowly, while the other worker serves on."""
    with Server(tmp_path / "log", "--attention-ranks", "2", "--threads", "1", "--kv-cache-memory", "64MiB") as server:
        want = tokens_of(server)
        stop, answers, failures = threading.Event(), [], []

        def ask():
            while not stop.is_set():
                try:
                    answers.append(tokens_of(server))
                except Exception as error:  # noqa: BLE001 - whatever a client sees counts
                    failures.append(error)

        clients = [threading.Thread(target=ask) for _ in range(2)]
        for client in clients:
            client.start()
        steady, victim = server.children("epic-worker")
        for _ in range(10):
            os.kill(victim, signal.SIGKILL)
            end = time.monotonic() + 90
            while not (others := [pid for pid in server.children("epic-worker") if pid not in (steady, victim)]):
                assert time.monotonic() < end, "the worker is not started again"
                time.sleep(0.05)
            victim = others[0]
        before = len(answers)
        while len(answers) < before + 2 and not failures:
            time.sleep(0.1)
        stop.set()
        for client in clients:
            client.join()
        assert not failures and set(answers) == {want}
        assert steady in server.children("epic-worker"), "the other worker was touched"
        assert server.process.poll() is None
        assert "after death 10 in a row" in server.log.read_text()


def test_a_second_instance_names_the_flag_of_the_taken_port(server):
    taken = {"--port": str(server.port), "--grpc-port": str(server.grpc_port), "--operators": server.operators}
    for flag, value in taken.items():
        free = {"--port": str(free_port()), "--grpc-port": str(free_port()), "--operators": f"127.0.0.1:{free_port()}"}
        flags = [word for pair in (free | {flag: value}).items() for word in pair]
        result = subprocess.run([BIN / "epic", "serve", MODEL, *flags], capture_output=True, text=True, timeout=60)
        assert result.returncode == 1 and result.stderr.startswith(f"error: {flag}: another process listens on"), result.stderr
        assert len(result.stderr.splitlines()) == 1 and "ready" not in result.stdout + result.stderr
