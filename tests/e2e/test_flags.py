"""The flags of all programs: what they say of themselves, and where their values come from."""
from __future__ import annotations

import json
import os
import re
import subprocess

import pytest
from server import BIN, MODEL

# What a supervisor decides for its workers, and flags of every program.
OF_THE_SUPERVISOR = {"--model", "--coordinator", "--roles", "--expert-slots", "--local-ranks", "--exchange", "--exchange-address",
                     "--advertised-host", "--run-dir", "--join-token-file", "--exit-with-parent"}


def described(*command: str) -> dict:
    result = subprocess.run([BIN / command[0], *command[1:], "--help-json"], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def commands_of(program: dict, path: str):
    yield path, program
    for command in program["commands"]:
        yield from commands_of(command, f"{path} {command['name']}")


def all_commands():
    for program in ("epic", "epic-worker", "epic-coordinator"):
        yield from commands_of(described(program), program)


def names_of(program: dict) -> set[str]:
    return {flag["names"][0] for flag in program["flags"]}


def test_every_flag_says_in_a_whole_sentence_what_it_does():
    checked = 0
    for path, program in all_commands():
        for flag in program["flags"]:
            text, where = flag["help"], f"{path} {flag['names'][0]}: {flag['help']}"
            assert re.fullmatch(r"[A-Z].* .*[.]", text), where
            checked += 1
    assert checked > 100


def test_every_flag_has_a_variable():
    for path, program in all_commands():
        for flag in program["flags"]:
            name = flag["names"][0]
            if name.startswith("--") and name not in ("--help", "--help-json"):
                assert flag["variable"] == "EPIC_" + name[2:].upper().replace("-", "_"), f"{path} {name}"


def test_serve_has_the_flags_of_its_workers_and_its_coordinator():
    serve = next(program for path, program in all_commands() if path == "epic serve")
    assert names_of(described("epic-worker")) - OF_THE_SUPERVISOR <= names_of(serve)
    coordinator = names_of(described("epic-coordinator"))
    own = {"--model", "--control", "--expect-ranks", "--expert-replicas", "--join-token-file", "--insecure", "--drain-move-after",
           "--exit-with-parent"}
    assert coordinator - own <= names_of(serve)


def test_the_words_of_a_flag_are_the_same_everywhere():
    words = {}
    for path, program in all_commands():
        for flag in program["flags"]:
            if "words" in flag:
                assert words.setdefault(flag["names"][0], flag["words"]) == flag["words"], path
    assert words["--kv-cache-dtype"] == ["auto", "bf16", "fp8"] and len(words) >= 8


@pytest.mark.parametrize("flags, variables, says", [
    ([], {}, "KV"),
    ([], {"EPIC_MAX_MODEL_LEN": "100000000"}, "100000000"),
    (["--max-model-len", "1024"], {"EPIC_MAX_MODEL_LEN": "100000000"}, "KV"),
    ([], {"EPIC_NUMERICS": "abacus"}, "abacus"),
    (["--quantization", "int9"], {}, "int9"),
])
def test_a_flag_goes_before_its_variable_and_that_before_the_default(flags, variables, says):
    result = subprocess.run([BIN / "epic", "serve", MODEL, "--dry-run", *flags], capture_output=True, text=True, timeout=60,
                            env=os.environ | variables)
    assert says in result.stdout + result.stderr
    assert (result.returncode == 0) == (says == "KV")
