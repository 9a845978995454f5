"""Holds the sources against the rules of docs/architecture.md: `python tests/tidy/tidy.py [ROOT]`.

Each check takes a path relative to the root and the file's text, and yields what is wrong with it.
"""
from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# Which folders a folder may include, itself apart. Tests, tools and the command line may include all.
ARROWS = {
    "base": set(),
    "proto": set(),
    "kernels": set(),
    "model": {"kernels", "base"},
    "text": {"base"},
    "cluster": {"proto", "base"},
    "worker": {"model", "text", "cluster", "kernels", "proto", "base"},
    "coordinator": {"text", "cluster", "proto", "base", "model"},
}
FOLDERS = set(ARROWS) | {"cli", "tests", "tools"}
# Of model/, the coordinator may know the configuration alone.
COORDINATOR_MODEL_HEADERS = {"model/config.h"}

# Which folders a sub-folder may include of its own top folder, whose files outside sub-folders all may include. A
# sub-folder that is not listed includes no other one.
SUB_ARROWS = {
    "coordinator/core": {"coordinator/admission", "coordinator/journal", "coordinator/routing", "coordinator/world"},
    "coordinator/frontend": {"coordinator/metrics"},
    "coordinator/service": {"coordinator/metrics"},
    "kernels/cpu": {"kernels/threads"},
    "kernels/cuda": {"kernels/threads"},
    "worker/engine": {"worker/kv", "worker/scheduler"},
    "worker/exchange": {"worker/engine", "worker/experts"},
    "worker/rank": {"worker/engine", "worker/exchange", "worker/experts", "worker/kv", "worker/scheduler", "worker/service"},
    "worker/scheduler": {"worker/kv"},
    "worker/service": {"worker/engine", "worker/exchange", "worker/experts"},
}

# What only base/ and the main.cc files may name: the outer world comes in through base/env.h.
WORLD = [
    (re.compile(r"\babsl::(Now|SleepFor)\b|\bstd::chrono::\w*clock\b|\bclock_gettime\b|\bgettimeofday\b|\btime\(nullptr\)|\b__rdtscp?\b"), "reads a clock"),
    (re.compile(r"\bstd::this_thread::(sleep_\w+|yield)|\b(u|nano)?sleep\(|\bsched_yield\("), "sleeps"),
    (re.compile(r"\bstd::(j?thread|async)\b(?!::hardware_concurrency|::id)|\bpthread_create\b"), "makes a thread"),
    (re.compile(r"\bstd::random_device\b|\bstd::mt19937\w*|\bs?rand\(\)|\bgetrandom\b"), "draws random numbers"),
]
WORLD_EXCEPTIONS = {
    # kernels/ builds alone, so the threads of its operations are its own.
    "kernels/threads/thread_pool.cc", "kernels/threads/thread_pool.h",
    # NCCL and MPI give no event to wait for: their state is asked again and again.
    "cluster/transport/nccl/nccl_collective.cc", "worker/exchange/start_epochs.cc",
}

GRPC_INCLUDE = re.compile(r'#include [<"](grpcpp/|grpc/|proto/epic/v1/\w+\.grpc\.pb\.h)')
BOOST_INCLUDE = re.compile(r"#include <boost/")
# Where gRPC and Boost may be seen: the edges, never the core.
EDGES = re.compile(r"^(cli/|tests/|cluster/grpc/|coordinator/frontend/|coordinator/service/|coordinator/program\.cc$)|/main\.cc$")

# Every mutex is annotated, so that clang can prove its use (locks.py): absl::Mutex is, and the one of
# kernels/, which builds alone.
PLAIN_MUTEX = re.compile(r"\bstd::(\w*mutex|lock_guard|unique_lock|scoped_lock|shared_lock|condition_variable\w*)\b")
MUTEX_MEMBER = re.compile(r"\b(?:\w+::)?Mutex\s+(\w+)\s*;")
PLAIN_MUTEX_EXCEPTIONS = {"kernels/mutex.h"}

LINE_LENGTH_MAX = 100
FILE_LINES_MAX = 350
TEST_FILE_LINES_MAX = 500
# Longer for now, each with its length: it may shrink, never grow.
LONG_FILES: dict[str, int] = {
    "coordinator/frontend/http_api_test.cc": 532,
}
FUNCTION_LINES_MAX = 70
# Longer on purpose, each with its length: it may shrink, never grow.
LONG_FUNCTIONS: dict[str, int] = {}

INCLUDE = re.compile(r'^#include "([^"]+)"', re.M)
STRINGS_AND_COMMENTS = re.compile(r'//[^\n]*|/\*.*?\*/|R"(\w*)\(.*?\)\1"|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])\'', re.S)


def code_of(text: str) -> str:
    """The text without comments and string contents; lines stay where they are."""
    return STRINGS_AND_COMMENTS.sub(lambda m: re.sub(r"[^\n]", " ", m[0]), text)


def is_test(path: str) -> bool:
    return path.startswith("tests/") or re.search(r"_(test|benchmark|fuzz)\.cc$|_test_util\.(h|cc)$|/testing/", path) is not None


def check_arrows(path: str, text: str):
    folder = path.split("/")[0]
    if folder not in ARROWS:
        return
    for included in INCLUDE.findall(text):
        target = included.split("/")[0]
        if target not in FOLDERS:
            continue
        if target in ("tests", "tools"):
            yield f"includes {included}: nothing may include {target}/"
        elif target != folder and target not in ARROWS[folder] and not (is_test(path) and target == "base"):
            yield f"includes {included}: {folder}/ may include {sorted(ARROWS[folder]) or 'nothing of EPIC'}"
        elif folder == "coordinator" and target == "model" and included not in COORDINATOR_MODEL_HEADERS:
            yield f"includes {included}: of model/, coordinator/ may include {sorted(COORDINATOR_MODEL_HEADERS)}"


def folder_of(path: str) -> str:
    return "/".join(path.split("/")[:2]) if path.count("/") > 1 else path.split("/")[0]


def check_sub_arrows(path: str, text: str):
    folder = folder_of(path)
    top = path.split("/")[0]
    if top not in ARROWS or folder == top or is_test(path):
        return
    for included in INCLUDE.findall(text):
        target = folder_of(included)
        if target in (folder, top) or target.split("/")[0] != top or target in SUB_ARROWS.get(folder, set()):
            continue
        if not is_test(included):
            yield f"includes {included}: {folder}/ may include {sorted(SUB_ARROWS.get(folder, set())) or 'no other folder'} of {top}/"


def check_world(path: str, text: str):
    if path.startswith(("base/", "cli/", "cmake/", "tools/")) or path.endswith("/main.cc") or is_test(path) or path in WORLD_EXCEPTIONS:
        return
    for number, line in enumerate(code_of(text).split("\n"), 1):
        for pattern, what in WORLD:
            if pattern.search(line):
                yield f"line {number} {what}: take it from base/env.h"


def check_edges(path: str, text: str):
    if EDGES.search(path) or is_test(path):
        return
    if GRPC_INCLUDE.search(text):
        yield "includes gRPC: core code may not"
    if BOOST_INCLUDE.search(text):
        yield "includes Boost: core code may not"


def check_lines(path: str, text: str):
    if path.endswith(".h") and "#pragma once" not in text:
        yield "has no #pragma once"
    for number, line in enumerate(text.split("\n"), 1):
        if len(line) > LINE_LENGTH_MAX and "http" not in line and 'R"' not in line:
            yield f"line {number} has {len(line)} characters, at most {LINE_LENGTH_MAX}"
        if line.rstrip() != line:
            yield f"line {number} ends in a space"
        if re.search(r"\b(TODO|FIXME|XXX)\b", line):
            yield f"line {number} is unfinished"


def functions_of(text: str):
    """(name, first line, lines) of each function body, found by its braces."""
    stack: list[tuple[str | None, int]] = []
    head, number = "", 1
    for c in code_of(text):
        if c == "\n":
            number += 1
        if c == "{":
            name = None
            signature = head.strip()
            match = re.search(r"([\w:~]+|operator\S+)\s*\([^;]*\)[^;{}=]*(:[^;]*)?$", signature)
            inside_function = any(n for n, _ in stack)
            if match and not inside_function and not re.match(r"(if|for|while|switch|namespace|struct|class|enum)\b", signature):
                name = match[1]
            stack.append((name, number))
            head = ""
        elif c == "}":
            if stack:
                name, first = stack.pop()
                if name:
                    yield name, first, number - first + 1
            head = ""
        elif c == ";":
            head = ""
        else:
            head += c


def check_size(path: str, text: str):
    lines = text.count("\n")
    allowed = LONG_FILES.get(path, TEST_FILE_LINES_MAX if is_test(path) else FILE_LINES_MAX)
    if lines > allowed:
        yield f"has {lines} lines, at most {allowed}: split it by what its parts do"


def check_functions(path: str, text: str):
    if is_test(path):
        return
    for name, first, lines in functions_of(text):
        allowed = LONG_FUNCTIONS.get(f"{path}:{name}", FUNCTION_LINES_MAX)
        if lines > allowed:
            yield f"line {first}: {name} has {lines} lines, at most {allowed}"


# What a page is called in a text: `docs/numerics.md`, `numerics.md §2`, [a link](../docs/numerics.md).
PAGE_NAME = re.compile(r"(?<![\w/.-])((?:[\w.-]+/)*[\w-]+\.md)\b")


def check_references(path: str, text: str, root: Path = ROOT):
    """Every page that a text names is there: beside the file, from the root, or in docs/."""
    if path.startswith("tests/tidy/"):  # names pages that are not there, to be found
        return
    for number, line in enumerate(text.split("\n"), 1):
        for name in PAGE_NAME.findall(line):
            places = (root / path).parent / name, root / name, root / "docs" / name
            if not any(place.exists() for place in places):
                yield f"line {number} names {name}, which is not there"


def check_mutexes(path: str, text: str):
    code = code_of(text)
    plain = PLAIN_MUTEX.search(code)
    if plain and path not in PLAIN_MUTEX_EXCEPTIONS:
        yield f"uses {plain[0]}: use absl::Mutex, with ABSL_GUARDED_BY on what it guards"
    for name in MUTEX_MEMBER.findall(code):
        if not re.search(rf"GUARDED_BY\({name}\)", code):
            yield f"does not say what {name} guards: mark it ABSL_GUARDED_BY({name})"


# A sampling setting costs four places: its message, the door's reader and check, the worker's
# conversion, and the sampler. This one stands for all.
SAMPLING_SETTING = "frequency_penalty"
SAMPLING_PLACES = {
    "proto/epic/v1/inference.proto",
    "coordinator/frontend/sampling.cc",
    "worker/engine/start_sequence.cc",
    "model/sampler.h", "model/sampler.cc",
}


def check_sampling(path: str, text: str):
    """No further file names each sampling setting."""
    if not path.endswith((".h", ".cc", ".proto")) or is_test(path) or path in SAMPLING_PLACES:
        return
    if SAMPLING_SETTING in text:
        yield f"names {SAMPLING_SETTING}: only {sorted(SAMPLING_PLACES)} know the sampling settings"


CHECKS = [check_arrows, check_sub_arrows, check_world, check_edges, check_lines, check_size, check_mutexes,
          check_functions]
def check_width(path: str, text: str):
    """Pages are read in terminals too: lines as in sources, but for tables, code and addresses."""
    if not path.endswith(".md") or "/" in path and not path.startswith("docs/"):
        return
    for number, line in enumerate(text.split("\n"), 1):
        if len(line) > LINE_LENGTH_MAX and not line.startswith(("|", "    ")) and "http" not in line:
            yield f"line {number} has {len(line)} characters, at most {LINE_LENGTH_MAX}"


TEXT_CHECKS = [check_references, check_sampling, check_width]
TEXTS = (".h", ".cc", ".cu", ".cuh", ".proto", ".py", ".rs", ".md", ".cmake", ".txt", ".yml", ".yaml")


def problems(root: Path) -> list[str]:
    listed = subprocess.run(["git", "-C", str(root), "ls-files", "--cached", "--others", "--exclude-standard"],
                            check=True, capture_output=True, text=True).stdout.split("\n")
    out = []
    for path in sorted(set(listed)):
        if not path.endswith(TEXTS) or not (root / path).exists():
            continue
        text = (root / path).read_text(encoding="utf-8")
        code = path.endswith((".h", ".cc", ".cu", ".cuh"))
        for check in [*(CHECKS if code else []), *TEXT_CHECKS]:
            out += [f"{path}: {problem}" for problem in check(path, text)]
    return out


if __name__ == "__main__":
    found = problems(Path(sys.argv[1] if len(sys.argv) > 1 else ".").resolve())
    print("\n".join(found))
    sys.exit(1 if found else 0)
