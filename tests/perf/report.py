"""The results pages: sections under headings, each written by the script that measured it.

CPUs with AMX have a page of their own, so that figures of one kind of machine never replace those of another.
"""
from __future__ import annotations

import argparse
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HAS_AMX = re.search(r"\bamx_tile\b", Path("/proc/cpuinfo").read_text()) is not None
PAGE = ROOT / ("tests/perf/RESULTS_AMX.md" if HAS_AMX else "tests/perf/RESULTS.md")
TITLE = "# Speed, measured on CPUs with AMX\n" if HAS_AMX else "# Speed, measured\n"


class DirtyTree(SystemExit):
    """Figures of a tree that nobody else has say nothing."""


def dirty_files(root: Path = ROOT) -> list[str]:
    """What differs from the commit, the pages themselves apart: one run writes several sections."""
    listed = subprocess.run(["git", "-C", root, "status", "--porcelain", "--untracked-files=no"], check=True,
                            stdout=subprocess.PIPE, text=True).stdout.splitlines()
    files = [line[3:] for line in listed]
    return [file for file in files if not (file.startswith("tests/perf/") and file.endswith(".md"))]


def require_clean(root: Path = ROOT) -> None:
    if files := dirty_files(root):
        raise DirtyTree(f"--write: the tree differs from its commit in {', '.join(files[:5])}; commit or stash first")


class Write(argparse.Action):
    """The flag --write, which refuses a dirty tree before anything is measured."""

    def __init__(self, option_strings, dest, **options):
        super().__init__(option_strings, dest, nargs=0, default=False, **options)

    def __call__(self, parser, namespace, values, option_string=None):
        require_clean()
        setattr(namespace, self.dest, True)


def commit(root: Path = ROOT) -> str:
    name = subprocess.run(["git", "-C", root, "describe", "--always"], stdout=subprocess.PIPE, text=True).stdout.strip()
    return name + ("-dirty" if dirty_files(root) else "")


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
