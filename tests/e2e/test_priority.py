"""The order in which requests that wait are served."""
from __future__ import annotations

import threading
import time

import grpc
from server import Server

PROMPT = "Once upon"


def test_lower_priority_values_go_first_over_http_and_grpc(tmp_path, stubs):
    pb, services = stubs
    ended = []

    def complete(priority: int) -> None:
        body = {"prompt": PROMPT, "max_tokens": 5, "ignore_eos": True, "priority": priority}
        assert server.post("/v1/completions", body)[0] == 200
        ended.append(priority)

    def generate(priority: int) -> None:
        request = pb.GenerateRequest(text=PROMPT, max_tokens=5, ignore_eos=True, priority=priority)
        assert list(inference.Generate(request))[-1].finish_reason == "length"
        ended.append(priority)

    def wait_for_waiting(count: int) -> None:
        end = time.monotonic() + 60
        while server.metric("vllm:num_requests_waiting") != count:
            assert time.monotonic() < end, f"{count} requests never wait"
            time.sleep(0.02)

    # Room for one answer: the first holds it until all others stand in line, and leaves then.
    with Server(tmp_path / "log", "--max-num-seqs", "1") as server, grpc.insecure_channel(server.grpc) as channel:
        inference = services.InferenceStub(channel)
        first = inference.Generate(pb.GenerateRequest(text=PROMPT, max_tokens=3500, ignore_eos=True, priority=5))
        next(first)
        threads = []
        for ask, priority in [(complete, 9), (generate, -7), (complete, 0)]:
            threads.append(threading.Thread(target=ask, args=(priority,)))
            threads[-1].start()
            wait_for_waiting(len(threads))
        assert not ended, "one is served although there is no room"
        first.cancel()
        for thread in threads:
            thread.join()
    assert ended == [-7, 0, 9]


def test_a_priority_that_is_no_integer_of_32_bits_is_refused_by_name(server):
    for priority in ("high", 1.5, 2**31):
        status, answer = server.post("/v1/completions", {"prompt": "Once", "priority": priority})
        assert status == 400
        assert answer["error"]["param"] == "priority"
