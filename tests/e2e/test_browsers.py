"""Web pages that ask the server, as a browser speaks for them."""
from __future__ import annotations

import http.client
import json

import pytest
from server import Server

CHAT = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
JSON = {"Content-Type": "application/json"}


def ask(server, method, path, headers, body=None):
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    with Server(tmp_path_factory.mktemp("guarded") / "log", "--api-key", "secret", "--cors-origins",
                "https://chat.example,https://b.example", "--allowed-hosts", "epic.example") as running:
        yield running


def test_a_page_of_loopback_may_ask_by_default(server):
    origin = {"Origin": "http://localhost:3000"}
    preflight = origin | {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    for method, path, headers, body, status in [
        ("OPTIONS", "/v1/chat/completions", preflight, None, 204),
        ("GET", "/v1/models", origin, None, 200),
        ("POST", "/v1/chat/completions", origin | JSON, json.dumps(CHAT), 200),
        ("POST", "/v1/chat/completions", origin | JSON, json.dumps(CHAT | {"stream": True}), 200),
        ("POST", "/v1/chat/completions", origin | JSON, "{", 400),
    ]:
        got, answered, _ = ask(server, method, path, headers, body)
        assert (got, answered.get("access-control-allow-origin")) == (status, "http://localhost:3000")
    answered = ask(server, "OPTIONS", "/v1/chat/completions", preflight)[1]
    assert answered["access-control-allow-headers"] == "authorization,content-type"
    assert "access-control-allow-origin" not in ask(server, "GET", "/v1/models", {"Origin": "https://evil.example"})[1]


def test_origins_and_hosts_are_flags(guarded):
    for origin, allowed in [("https://chat.example", True), ("https://b.example", True), ("http://localhost:3000", False)]:
        status, headers, body = ask(guarded, "OPTIONS", "/v1/models", {"Origin": origin, "Access-Control-Request-Method": "GET"})
        assert (status, body, headers.get("access-control-allow-origin")) == (204, b"", origin if allowed else None)
        status, headers, _ = ask(guarded, "GET", "/v1/models", {"Origin": origin})
        assert (status, headers.get("access-control-allow-origin")) == (401, origin if allowed else None)
    key = {"Authorization": "Bearer secret"}
    for host, status in [("evil.example", 403), ("epic.example:8000", 200), ("localhost", 200)]:
        assert ask(guarded, "GET", "/v1/models", key | {"Host": host})[0] == status
