"""Measures the sources and prints a table: `python tests/tidy/measure.py [ROOT]`.

Tests, benchmarks and their helpers are left out. A line is code if it holds more than a comment or white space.
"""
from __future__ import annotations

import re
import statistics
import subprocess
import sys
from pathlib import Path

import tidy

ASSERTION = re.compile(r"\b(KERNEL_|DEVICE_)?CHECK(_\w+)?\s*\(")
MUTEX = re.compile(r"\b(std::(recursive_|shared_)?mutex|absl::Mutex|(kernels::)?Mutex)\s+\w+\s*(;|ABSL_|\{)")


def sources(root: Path) -> dict[str, str]:
    listed = subprocess.run(["git", "-C", str(root), "ls-files"], check=True, capture_output=True, text=True).stdout.split("\n")
    return {path: (root / path).read_text(encoding="utf-8") for path in listed
            if path.endswith((".h", ".cc", ".cu", ".cuh")) and not tidy.is_test(path) and not re.search(r"/(test|bench)/|^tools/", path)}


def comment_and_code(text: str) -> tuple[int, int]:
    comments = code = 0
    for line in text.split("\n"):
        if re.match(r"\s*(//|/\*|\*)", line):
            comments += 1
        elif line.strip():
            code += 1
    return comments, code


def percentile(values: list[int], share: float) -> int:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def spread(values: list[int]) -> str:
    return f"{statistics.median(values):.0f} / {percentile(values, 0.9)} / {percentile(values, 0.99)} / {max(values)}"


def ratio(files: dict[str, str], *endings: str) -> str:
    counts = [comment_and_code(text) for path, text in files.items() if path.endswith(endings)]
    return f"{sum(c for c, _ in counts) / sum(c for _, c in counts):.3f}"


def rows(root: Path) -> list[tuple[str, str]]:
    files = sources(root)
    lines = [text.count("\n") for text in files.values()]
    functions = [length for text in files.values() for _, _, length in tidy.functions_of(text)]
    code = sum(comment_and_code(text)[1] for text in files.values())
    checks = sum(len(ASSERTION.findall(tidy.code_of(text))) for text in files.values())
    out = [("files, lines", f"{len(files)}, {sum(lines)}"),
           ("lines of a file: median / p90 / p99 / max", spread(lines)),
           ("files of more than 350 and of more than 500 lines", f"{sum(n > 350 for n in lines)}, {sum(n > 500 for n in lines)}"),
           ("lines of a function: median / p90 / p99 / max", spread(functions)),
           ("functions of more than 70 lines", str(sum(n > 70 for n in functions))),
           ("comment : code in headers", ratio(files, ".h", ".cuh")),
           ("comment : code in sources", ratio(files, ".cc", ".cu")),
           ("assertions that stay on", f"{checks}, one for {code / max(1, checks):.0f} lines of code"),
           ("mutexes", str(sum(len(MUTEX.findall(text)) for text in files.values())))]
    for folder in sorted({path.split("/")[0] for path in files}):
        own = {path: text for path, text in files.items() if path.startswith(folder + "/")}
        own_code = sum(comment_and_code(text)[1] for text in own.values())
        own_checks = sum(len(ASSERTION.findall(tidy.code_of(text))) for text in own.values())
        out.append((f"{folder}/: comment : code in headers, in sources; lines for an assertion",
                    f"{ratio(own, '.h', '.cuh')}, {ratio(own, '.cc', '.cu')}; {own_code / own_checks:.0f}" if own_checks else "none"))
    return out


if __name__ == "__main__":
    for name, value in rows(Path(sys.argv[1] if len(sys.argv) > 1 else ".").resolve()):
        print(f"| {name} | {value} |")
