from __future__ import annotations

import importlib
import json
import sys

import openai
import pytest
from server import MODEL, ROOT, Server


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    with Server(tmp_path_factory.mktemp("server") / "log") as running:
        yield running


@pytest.fixture(scope="session")
def client(server):
    return openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=120)


@pytest.fixture(scope="session")
def stubs(tmp_path_factory):
    """The modules that grpcio's own tools make of our proto files."""
    from grpc_tools import protoc

    out = tmp_path_factory.mktemp("stubs")
    protos = [str(p) for p in sorted((ROOT / "proto/epic/v1").glob("*.proto"))]
    assert protoc.main(["protoc", f"-I{ROOT}", f"--python_out={out}", f"--grpc_python_out={out}", *protos]) == 0
    sys.path.insert(0, str(out))
    return (importlib.import_module("proto.epic.v1.inference_pb2"),
            importlib.import_module("proto.epic.v1.inference_pb2_grpc"))


@pytest.fixture(scope="session")
def answers():
    """What transformers answers in float32 to 200 fixed questions, greedily."""
    return json.loads((ROOT / "tests/golden/data/tiny_r1_answers.json").read_text())


@pytest.fixture(scope="session")
def model_folder():
    return MODEL


def messages_of(sample) -> list[dict]:
    turns = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in sample["history"]]
    return sum(turns, []) + [{"role": "user", "content": sample["question"]}]
