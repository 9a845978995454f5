"""The results pages: sections under headings, each written by the script that measured it.

CPUs with AMX have a page of their own, so that figures of one kind of machine never replace those of another.
"""
from __future__ import annotations

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HAS_AMX = re.search(r"\bamx_tile\b", Path("/proc/cpuinfo").read_text()) is not None
PAGE = ROOT / ("tests/perf/RESULTS_AMX.md" if HAS_AMX else "tests/perf/RESULTS.md")
TITLE = "# Speed, measured on CPUs with AMX\n" if HAS_AMX else "# Speed, measured\n"


def commit() -> str:
    return subprocess.run(["git", "-C", ROOT, "describe", "--always", "--dirty"], stdout=subprocess.PIPE, text=True).stdout.strip()


def write_section(heading: str, text: str, path: Path = PAGE, title: str = TITLE) -> None:
    """Replaces the section of that heading, or adds it at the end."""
    page = path.read_text() if path.exists() else title
    section = f"## {heading}\n\n{text.strip()}\n"
    pattern = re.compile(rf"^## {re.escape(heading)}\n.*?(?=^## |\Z)", re.M | re.S)
    page = pattern.sub(lambda _: section + "\n", page) if pattern.search(page) else page.rstrip() + "\n\n" + section
    path.write_text(page.rstrip() + "\n")


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
