"""The order in which requests that wait are served."""
from __future__ import annotations

import threading
import time

import grpc
from server import Server


def test_lower_priority_values_go_first_over_http_and_grpc(tmp_path, stubs):
    pb, services = stubs
    ended = []

    def complete(name: str, priority: int, tokens: int) -> None:
        status, _ = server.post("/v1/completions", {"prompt": "Once upon", "max_tokens": tokens, "ignore_eos": True,
                                                    "priority": priority})
        assert status == 200
        ended.append(name)

    def generate(name: str, priority: int, tokens: int) -> None:
        with grpc.insecure_channel(server.grpc) as channel:
            request = pb.GenerateRequest(text="Once upon", max_tokens=tokens, ignore_eos=True, priority=priority)
            assert list(services.InferenceStub(channel).Generate(request))[-1].finish_reason == "length"
        ended.append(name)

    def wait_for(metric: str, value: float) -> None:
        end = time.monotonic() + 60
        while server.metric(metric) != value:
            assert time.monotonic() < end, f"{metric} is never {value}"
            time.sleep(0.01)

    # Room for one answer: the first one has it for long, so that all others stand in line.
    with Server(tmp_path / "log", "--max-num-seqs", "1") as server:
        threads = []
        for count, (ask, name, priority) in enumerate([(complete, "first", 5), (complete, "last", 9),
                                                       (generate, "second", -7), (complete, "third", 0)], 1):
            threads.append(threading.Thread(target=ask, args=(name, priority, 3500 if count == 1 else 5)))
            threads[-1].start()
            if count == 1:
                wait_for("vllm:num_requests_running", 1)
            wait_for("vllm:num_requests_waiting", count - 1)
        assert not ended, "the first ended before all others stood in line"
        for thread in threads:
            thread.join()
    assert ended == ["first", "second", "third", "last"]


def test_a_priority_that_is_no_integer_of_32_bits_is_refused_by_name(server):
    for priority in ("high", 1.5, 2**31):
        status, answer = server.post("/v1/completions", {"prompt": "Once", "priority": priority})
        assert status == 400
        assert answer["error"]["param"] == "priority"
