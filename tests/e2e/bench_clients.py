"""The bench clients of vLLM and SGLang, as far as a server can tell: what they send, and how they read what comes back.

Both packages need a GPU to install. Their rules for streams, written anew:
- vLLM splits at empty lines, skips messages that begin with a colon, and parses each other message, without its first
  `data: `, as one JSON value. It takes a `data: ` line without an empty line behind it, too, as soon as it is whole.
- SGLang parses each line that is not empty, without its first `data: `, as JSON; it needs a choice in every event.
"""
from __future__ import annotations

import json
import urllib.request

DONE = "[DONE]"


def vllm_body(chat: bool, prompt: str, tokens: int) -> dict:
    asked = {"messages": [{"role": "user", "content": [{"type": "text", "text": prompt}]}], "max_completion_tokens": tokens} if chat \
        else {"prompt": prompt, "repetition_penalty": 1.0, "max_tokens": tokens, "logprobs": None}
    return asked | {"model": "tiny-r1", "temperature": 0.0, "stream": True, "stream_options": {"include_usage": True}, "ignore_eos": True}


def sglang_body(chat: bool, prompt: str, tokens: int) -> dict:
    asked = {"messages": [{"role": "user", "content": prompt}], "max_completion_tokens": tokens} if chat \
        else {"prompt": prompt, "best_of": 1, "max_tokens": tokens}
    return asked | {"model": "tiny-r1", "temperature": 0.0, "stream": True, "ignore_eos": True}


def vllm_messages(pieces):
    """The JSON values of a stream that arrives in these pieces."""
    buffer = ""
    for piece in pieces:
        buffer += piece.decode()
        messages = []
        while "\n\n" in buffer:
            message, buffer = buffer.split("\n\n", 1)
            if message.strip():
                messages.append(message.strip())
        if buffer.startswith("data: "):
            content = buffer.removeprefix("data: ").strip()
            try:
                whole = content == DONE or bool(content and json.loads(content) is not None)
            except json.JSONDecodeError:
                whole = False
            if whole:
                messages.append(buffer.strip())
                buffer = ""
        for message in messages:
            text = message.removeprefix("data: ")
            if not message.startswith(":") and text != DONE:
                yield json.loads(text)


def sglang_messages(text: bytes):
    for line in text.split(b"\n"):
        line = line.strip().decode().removeprefix("data: ")
        if line and line != DONE:
            yield json.loads(line)


def read_as_vllm(text: bytes, piece_bytes: int) -> dict:
    """The generated text, the events with text and the usage."""
    said, events, usage = "", 0, None
    for data in vllm_messages(text[i:i + piece_bytes] for i in range(0, len(text), piece_bytes)):
        if choices := data.get("choices"):
            piece = choices[0]["text"] if "text" in choices[0] else choices[0]["delta"].get("content")
            said += piece or ""
            events += bool(piece)
        elif usage_now := data.get("usage"):
            usage = usage_now["completion_tokens"]
    return {"text": said, "events": events, "tokens": usage}


def read_as_sglang(text: bytes) -> dict:
    said, events = "", 0
    for data in sglang_messages(text):
        choice = data["choices"][0]
        piece = choice["text"] if "text" in choice else choice["delta"].get("content", "")
        said += piece or ""
        events += bool(piece)
    return {"text": said, "events": events}


def stream(url: str, path: str, body: dict) -> bytes:
    request = urllib.request.Request(url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return answer.read()
