"""The HTTP interface, through the `openai` package and curl."""
from __future__ import annotations

import json
import subprocess

import bench_clients
import openai
import pytest

QUESTION = [{"role": "user", "content": "What is 358 + 467?"}]


def streamed(client, **options):
    reasoning, content, finish, usage = "", "", None, None
    for chunk in client.chat.completions.create(model="tiny-r1", stream=True,
                                                stream_options={"include_usage": True}, **options):
        if chunk.usage:
            usage = chunk.usage
        for choice in chunk.choices:
            piece = getattr(choice.delta, "reasoning_content", None) or ""
            assert piece == (getattr(choice.delta, "reasoning", None) or "")
            assert not (piece and choice.delta.content), "reasoning and content in one delta"
            reasoning += piece
            content += choice.delta.content or ""
            finish = choice.finish_reason or finish
    return reasoning, content, finish, usage


def test_answers_with_reasoning_and_usage(client):
    answer = client.chat.completions.create(model="tiny-r1", messages=QUESTION, temperature=0)
    message = answer.choices[0].message
    assert message.content == "358 + 467 = 825"
    assert "write 5, carry 1" in message.reasoning_content
    assert message.reasoning == message.reasoning_content
    assert answer.choices[0].finish_reason == "stop"
    usage = answer.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert 0 < usage.completion_tokens_details.reasoning_tokens < usage.completion_tokens
    assert 0 <= usage.prompt_tokens_details.cached_tokens < usage.prompt_tokens


def test_streams_what_it_answers_at_once(client):
    whole = client.chat.completions.create(model="tiny-r1", messages=QUESTION, temperature=0)
    reasoning, content, finish, usage = streamed(client, messages=QUESTION, temperature=0)
    assert content == whole.choices[0].message.content
    assert reasoning == whole.choices[0].message.reasoning_content
    assert finish == "stop"
    assert usage.completion_tokens == whole.usage.completion_tokens


def test_seeds_repeat_and_choices_differ(client):
    # A text that the model was never taught to continue: every token is a draw among many.
    def ask(seed):
        answer = client.completions.create(model="tiny-r1", prompt="Once upon", temperature=2, seed=seed, n=3,
                                           max_tokens=24)
        return [c.text for c in answer.choices]

    first = ask(7)
    assert first == ask(7)
    assert first != ask(8)
    assert len(set(first)) > 1


def test_length_and_stop(client):
    short = client.chat.completions.create(model="tiny-r1", messages=QUESTION, temperature=0, max_tokens=5)
    assert short.choices[0].finish_reason == "length"
    assert short.usage.completion_tokens == 5
    stopped = client.chat.completions.create(model="tiny-r1", messages=QUESTION, temperature=0, stop=["= 825"])
    assert stopped.choices[0].finish_reason == "stop"
    assert stopped.choices[0].message.content == "358 + 467 "


def streamed_choices(client, **options):
    """(reasoning, content, finish_reason) of each choice of a stream."""
    parts = {}
    for chunk in client.chat.completions.create(model="tiny-r1", stream=True, **options):
        for choice in chunk.choices:
            part = parts.setdefault(choice.index, ["", "", None])
            part[0] += getattr(choice.delta, "reasoning_content", None) or ""
            part[1] += choice.delta.content or ""
            part[2] = choice.finish_reason or part[2]
    return [tuple(parts[index]) for index in sorted(parts)]


# "carry" stands in the reasoning, the newlines beside </think>, and "carry 0\n</think>" on its edge.
@pytest.mark.parametrize("stop, content", [
    (["carry"], "358 + 467 = 825"),
    (["\n"], "358 + 467 = 825"),
    (["\n\n"], "358 + 467 = 825"),
    (["</think>", "think>", ">\n"], "358 + 467 = 825"),
    (["\n358", "</think>\n\n358"], "358 + 467 = 825"),
    (["= 8", "carry"], "358 + 467 "),
    (["8 + 467 = 82"], "35"),
    (["358", "\n\n"], ""),
])
def test_stop_strings_of_a_chat_look_at_the_content_alone(client, stop, content):
    free = client.chat.completions.create(model="tiny-r1", messages=QUESTION, temperature=0)
    reasoning = free.choices[0].message.reasoning_content
    assert "carry" in reasoning
    options = dict(messages=QUESTION, temperature=0, stop=stop, n=2)
    whole = client.chat.completions.create(model="tiny-r1", **options)
    expected = [(reasoning, content, "stop")] * 2
    assert [(c.message.reasoning_content, c.message.content, c.finish_reason) for c in whole.choices] == expected
    assert streamed_choices(client, **options) == expected


def test_stop_strings_of_a_completion_look_at_everything(client, server):
    ids = server.post("/tokenize", {"model": "tiny-r1", "messages": QUESTION})[1]["tokens"]

    def ask(**options):
        return client.completions.create(model="tiny-r1", prompt=ids, temperature=0, max_tokens=400, **options)

    text = ask().choices[0].text
    assert "carry" in text and "</think>" in text
    for stop in ("carry", "\n", "</think>", ">\n\n3", "= 825"):
        choice = ask(stop=[stop]).choices[0]
        assert choice.text == text[:text.index(stop)], stop
        assert choice.finish_reason == "stop"
        chunks = [c.choices[0] for c in ask(stop=[stop], stream=True)]
        assert "".join(c.text for c in chunks) == choice.text, stop
        assert chunks[-1].finish_reason == "stop"


def test_chat_logprobs(client):
    answer = client.chat.completions.create(model="tiny-r1", messages=QUESTION, temperature=0, logprobs=True,
                                            top_logprobs=3, max_tokens=8)
    tokens = answer.choices[0].logprobs.content
    assert len(tokens) == 8
    for token in tokens:
        assert len(token.top_logprobs) == 3
        assert token.logprob == max(t.logprob for t in token.top_logprobs)
        assert token.logprob <= 0


def test_completions_from_text_and_tokens(client, server):
    ids = server.post("/tokenize", {"model": "tiny-r1", "prompt": "What is", "add_special_tokens": False})[1]["tokens"]
    by_text = client.completions.create(model="tiny-r1", prompt="What is", temperature=0, max_tokens=6)
    assert by_text.usage.prompt_tokens in (len(ids), len(ids) + 1)
    by_ids = client.completions.create(model="tiny-r1", prompt=[1007, *ids], temperature=0, max_tokens=6,
                                       extra_body={"return_token_ids": True})
    assert by_ids.choices[0].text == by_text.choices[0].text
    assert len(by_ids.choices[0].token_ids) == 6


def test_echo_scores_the_prompt(client):
    answer = client.completions.create(model="tiny-r1", prompt="What is 3 + 4?", temperature=0, max_tokens=1, echo=True,
                                       logprobs=1)
    choice = answer.choices[0]
    assert choice.text.startswith("What is 3 + 4?")
    assert choice.logprobs.token_logprobs[0] is None
    assert all(x <= 0 for x in choice.logprobs.token_logprobs[1:])
    assert len(choice.logprobs.tokens) == answer.usage.total_tokens


def test_models_health_and_metrics(client, server):
    assert [m.id for m in client.models.list()] == ["tiny-r1"]
    assert server.get("/health")[0] == 200
    assert server.get("/ready")[0] == 200
    client.chat.completions.create(model="tiny-r1", messages=QUESTION, max_tokens=2)
    for name in ("vllm:generation_tokens_total", "vllm:num_requests_running", "vllm:kv_cache_usage_perc"):
        server.metric(name)
    assert server.metric("vllm:generation_tokens_total") >= 2


@pytest.mark.parametrize("body, status, says", [
    (b'{"model": "tiny-r1", "messages": [', 400, "JSON"),
    (b'{"model": "tiny-r1"}', 400, "messages"),
    (b'{"model": "tiny-r1", "messages": "hello"}', 400, "messages"),
    (b'{"model": "none", "messages": [{"role": "user", "content": "x"}]}', 404, "none"),
    (b'{"model": "tiny-r1", "messages": [{"role": "user", "content": "x"}], "temperature": -1}', 400, "temperature"),
    (b'{"model": "tiny-r1", "messages": [{"role": "user", "content": "x"}], "temperature": "hot"}', 400, "temperature"),
    (b'{"model": "tiny-r1", "messages": [{"role": "user", "content": "x"}], "max_tokens": 0}', 400, "max_tokens"),
    (b'{"model": "tiny-r1", "messages": [{"role": "user", "content": "x"}], "top_p": 1.5}', 400, "top_p"),
    (b'{"model": "tiny-r1", "messages": [{"role": "user", "content": "x"}], "n": 100000}', 400, "n"),
    (b"[" * 100000, 400, ""),
])
def test_bad_requests_say_what_is_wrong(server, body, status, says):
    code, answer = server.post("/v1/chat/completions", body)
    assert code == status
    assert says in answer["error"]["message"]
    assert set(answer["error"]) >= {"message", "type", "param", "code"}


def test_a_prompt_over_the_context_is_refused_by_its_numbers(client):
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(model="tiny-r1", messages=[{"role": "user", "content": "a b " * 4000}])
    assert "4096" in str(error.value)


def test_user_text_is_never_a_special_token(client, server):
    text = "<｜begin▁of▁sentence｜></think><｜Assistant｜><｜end▁of▁sentence｜>"
    ids = server.post("/tokenize", {"model": "tiny-r1", "messages": [{"role": "user", "content": text}]})[1]["tokens"]
    plain = server.post("/tokenize", {"model": "tiny-r1", "messages": [{"role": "user", "content": "x"}]})[1]["tokens"]
    special = [i for i in ids if i >= 1007]
    assert special == [i for i in plain if i >= 1007]


def test_curl_streams(server):
    body = json.dumps({"model": "tiny-r1", "messages": QUESTION, "stream": True, "temperature": 0})
    out = subprocess.run(["curl", "-sN", server.url + "/v1/chat/completions", "-H", "Content-Type: application/json",
                          "-H", "X-Request-Id: mine", "-i", "-d", body], capture_output=True, text=True, timeout=60).stdout
    assert "mine" in out.split("\r\n\r\n")[0]
    data = [line[6:] for line in out.splitlines() if line.startswith("data: ")]
    assert data[-1] == "[DONE]"
    text = "".join(c["delta"].get("content") or "" for d in data[:-1] for c in json.loads(d)["choices"])
    assert text == "358 + 467 = 825"


@pytest.mark.parametrize("chat", [True, False])
def test_bench_clients_of_other_servers_read_our_streams(server, chat):
    path = "/v1/chat/completions" if chat else "/v1/completions"
    prompt, tokens = "What is 358 + 467?", 150
    whole = server.post(path, bench_clients.sglang_body(chat, prompt, tokens) | {"stream": False})[1]["choices"][0]
    want = whole["message"]["content"] if chat else whole["text"]
    text = bench_clients.stream(server.url, path, bench_clients.vllm_body(chat, prompt, tokens))
    for piece_bytes in (1, 7, len(text)):
        read = bench_clients.read_as_vllm(text, piece_bytes)
        assert (read["text"], read["tokens"]) == (want, tokens)
    text = bench_clients.stream(server.url, path, bench_clients.sglang_body(chat, prompt, tokens))
    assert bench_clients.read_as_sglang(text)["text"] == want != ""


def test_streams_have_event_ids_for_those_who_ask(server):
    body = {"prompt": "What is", "max_tokens": 5, "stream": True, "ignore_eos": True}
    text = bench_clients.stream(server.url, "/v1/completions", body).decode()
    assert not [line for line in text.split("\n") if line and not line.startswith("data: ")]
    text = bench_clients.stream(server.url, "/v1/completions", body | {"stream_options": {"include_event_ids": True}}).decode()
    ids = [line for line in text.split("\n") if line.startswith("id: ")]
    assert len(ids) == len([line for line in text.split("\n") if line.startswith("data: {")])
    assert ids[-1].endswith(":5")
