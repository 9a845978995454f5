"""Times a build from scratch and after a change of one line: `python tests/perf/build_time.py [TARGET ...]`.

Works on a copy of the last commit, without the compiler cache. Default: every target.
"""
from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CHANGED = ("kernels/cpu/cpu_backend.cc", "model/step.cc", "model/step.h")


def main(targets: list[str]) -> None:
    environment = dict(os.environ, CCACHE_DISABLE="1")

    def timed(what: str, *command: str) -> None:
        start = time.monotonic()
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
        print(f"| {what} | {time.monotonic() - start:.1f} s |", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(["git", "-C", ROOT, "archive", "HEAD"], check=True, stdout=subprocess.PIPE).stdout
        subprocess.run(["tar", "-x", "-C", folder], input=archive, check=True)
        build = f"{folder}/build"
        print(f"| {os.cpu_count()} cores | time |\n|---|---|")
        timed("configure", "cmake", "-S", folder, "-B", build, "-G", "Ninja")
        timed("from scratch", "ninja", "-C", build, *targets)
        timed("nothing changed", "ninja", "-C", build, *targets)
        for path in CHANGED:
            with (Path(folder) / path).open("a") as file:
                file.write("// One more line.\n")
            timed(f"one line in {path}", "ninja", "-C", build, *targets)


if __name__ == "__main__":
    main(sys.argv[1:])
