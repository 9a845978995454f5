"""Holds every use of a mutex against its annotations with clang: `python tests/tidy/locks.py [BUILD]`.

absl/base/thread_annotations.h says in the sources which mutex guards which member and which function
needs it. GCC ignores that; clang's -Wthread-safety proves it. Only the sources that can be wrong are
compiled, for their errors alone: those that name a mutex, and those that include a header that does.
"""
from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from os import cpu_count
from pathlib import Path

# The newest of these is taken. Older ones do not know all of the C++20 that the sources use.
COMPILERS = ["clang++-22", "clang++-19", "clang++"]
CHECKS = ["-fsyntax-only", "-Wno-everything", "-Wthread-safety", "-Werror=thread-safety"]
# Tests may use what the annotations forbid to nobody: they are looked at only where they lock.
MUTEX = re.compile(r"\b(absl::|kernels::|\b)Mutex(Lock)?\b|\b(ABSL_|EPIC_)?GUARDED_BY\(")
INCLUDE = re.compile(r'^#include "([^"]+)"', re.M)
TEST = re.compile(r"_(test|benchmark|fuzz)\.cc$|^tests/")


def compiler() -> str:
    for name in COMPILERS:
        if shutil.which(name):
            return name
    raise SystemExit("no clang++ is installed: ./dev build installs clang-19")


def names_a_mutex(text: str) -> bool:
    return MUTEX.search(text) is not None


def chosen(root: Path, sources: list[str]) -> list[str]:
    """Those of the sources (paths relative to the root) that name a mutex, or include such a header."""
    def names(path: str) -> bool:
        file = root / path
        return file.exists() and names_a_mutex(file.read_text(encoding="utf-8"))

    out = []
    for source in sources:
        if not (root / source).exists():
            continue
        text = (root / source).read_text(encoding="utf-8")
        if names_a_mutex(text) or not TEST.search(source) and any(names(h) for h in INCLUDE.findall(text)):
            out.append(source)
    return out


def flags_of(command: str) -> list[str]:
    """What a source is compiled with: its definitions, folders and language, not its output."""
    words = shlex.split(command)
    first = next(i for i, word in enumerate(words) if word.startswith("-"))
    flags, skip = [], False
    for word in words[first:]:
        if skip or word == "-c":
            skip = False
        elif word == "-o":
            skip = True
        else:
            flags.append(word)
    return flags[:-1]  # the last one is the source


def errors_in(source: Path, flags: list[str]) -> str:
    """What clang has against the source; empty: nothing."""
    done = subprocess.run([compiler(), *CHECKS, *flags, str(source)], capture_output=True, text=True)
    return "" if done.returncode == 0 else done.stderr


def problems(root: Path, build: Path) -> tuple[int, list[str]]:
    """How many sources were compiled, and clang's errors."""
    commands = {}
    for entry in json.loads((build / "compile_commands.json").read_text()):
        file = Path(entry["file"])
        if file.suffix == ".cc" and file.is_relative_to(root):
            commands.setdefault(str(file.relative_to(root)), entry["command"])
    sources = chosen(root, sorted(commands))
    with ThreadPoolExecutor(cpu_count()) as pool:
        found = pool.map(lambda source: errors_in(root / source, flags_of(commands[source])), sources)
    return len(sources), [text for text in found if text]


if __name__ == "__main__":
    repository = Path(__file__).resolve().parents[2]
    count, found = problems(repository, (repository / (sys.argv[1] if len(sys.argv) > 1 else "build")).resolve())
    print("\n".join(found) if found else f"clang has nothing against the locks of {count} sources")
    sys.exit(1 if found else 0)
