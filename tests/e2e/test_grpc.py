"""The gRPC interface, through grpcio."""
from __future__ import annotations

import threading

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase


@pytest.fixture(scope="module")
def channel(server):
    with grpc.insecure_channel(server.grpc) as channel:
        yield channel


@pytest.fixture(scope="module")
def inference(channel, stubs):
    return stubs[1].InferenceStub(channel)


def question(pb, text="What is 358 + 467?", **fields):
    request = pb.GenerateRequest(messages=pb.Messages(messages=[pb.ChatMessage(role="user", content=text)]), **fields)
    request.sampling.temperature = 0
    return request


def test_generate_streams_reasoning_and_answer(inference, stubs):
    responses = list(inference.Generate(question(stubs[0])))
    assert "".join(r.text for r in responses) == "358 + 467 = 825"
    assert "carry 1" in "".join(r.reasoning for r in responses)
    assert responses[-1].finish_reason == "stop"
    usage = responses[-1].usage
    assert usage.completion_tokens == sum(len(r.token_ids) for r in responses)
    assert len(responses) > 5, "it streams"


def test_generate_from_text_and_token_ids_agree(inference, stubs):
    pb = stubs[0]
    ids = inference.Tokenize(pb.TokenizeRequest(text="What is 3 + 4?", add_special_tokens=True)).ids

    def run(**fields):
        request = pb.GenerateRequest(max_tokens=8, **fields)
        request.sampling.temperature = 0
        return [t for r in inference.Generate(request) for t in r.token_ids]

    assert run(text="What is 3 + 4?") == run(token_ids=pb.TokenIds(ids=ids))
    assert inference.Detokenize(pb.DetokenizeRequest(ids=ids, skip_special_tokens=True)).text == "What is 3 + 4?"


def test_stop_strings_look_at_the_content_alone_where_reasoning_is_split_off(inference, stubs):
    pb = stubs[0]

    def read(request):
        """The reasoning, text and finish reason of each choice."""
        parts = {}
        for response in inference.Generate(request):
            part = parts.setdefault(response.choice, ["", "", ""])
            part[0] += response.reasoning
            part[1] += response.text
            part[2] = response.finish_reason or part[2]
        return [tuple(parts[choice]) for choice in sorted(parts)]

    free = read(question(pb))[0]
    assert "carry" in free[0]
    assert read(question(pb, stop=["carry", "\n\n", "</think>"], n=2)) == [free] * 2
    assert read(question(pb, stop=["carry", "= 8"])) == [(free[0], "358 + 467 ", "stop")]

    def raw(**fields):
        request = pb.GenerateRequest(text="What is 3 + 4?", max_tokens=40, ignore_eos=True, **fields)
        request.sampling.temperature = 0
        return read(request)[0]

    text = raw()[1]
    stop = text[len(text) // 2:][:4]
    assert raw(stop=[stop]) == ("", text[:text.index(stop)], "stop")


def test_cancel_ends_the_stream(inference, stubs):
    pb = stubs[0]
    request = question(pb, request_id="to-be-cancelled", ignore_eos=True, max_tokens=3500)
    stream = inference.Generate(request)
    next(stream)
    inference.Cancel(pb.CancelRequest(request_id="to-be-cancelled"))
    assert list(stream)[-1].finish_reason == "cancelled"
    with pytest.raises(grpc.RpcError) as error:
        inference.Cancel(pb.CancelRequest(request_id="to-be-cancelled"))
    assert error.value.code() == grpc.StatusCode.NOT_FOUND


def test_many_clients_at_once_get_the_same_answer(inference, stubs):
    answers = [""] * 16

    def ask(i):
        answers[i] = "".join(r.text for r in inference.Generate(question(stubs[0])))

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(answers))]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert set(answers) == {"358 + 467 = 825"}


@pytest.mark.parametrize("fields, code, says", [
    ({"model": "none"}, grpc.StatusCode.NOT_FOUND, "none"),
    ({"max_tokens": -3}, grpc.StatusCode.INVALID_ARGUMENT, "max_tokens"),
    ({"n": 100000}, grpc.StatusCode.INVALID_ARGUMENT, "n"),
])
def test_bad_requests_say_what_is_wrong(inference, stubs, fields, code, says):
    with pytest.raises(grpc.RpcError) as error:
        list(inference.Generate(question(stubs[0], **fields)))
    assert error.value.code() == code
    assert says in error.value.details()


def test_token_ids_outside_the_vocabulary_are_refused(inference, stubs):
    pb = stubs[0]
    with pytest.raises(grpc.RpcError) as error:
        list(inference.Generate(pb.GenerateRequest(token_ids=pb.TokenIds(ids=[5, 1024]))))
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "1024" in error.value.details()


def test_models_health_and_reflection(inference, stubs, channel):
    cards = inference.ListModels(stubs[0].ListModelsRequest()).models
    assert [c.id for c in cards] == ["tiny-r1"]
    assert cards[0].max_model_len == 4096
    status = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest()).status
    assert status == health_pb2.HealthCheckResponse.SERVING
    assert "epic.v1.Inference" in ProtoReflectionDescriptorDatabase(channel).get_services()
