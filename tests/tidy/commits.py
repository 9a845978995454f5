"""Holds commits against CONTRIBUTING.md: `python tests/tidy/commits.py BASE..HEAD`.

A commit of more than 400 inserted lines says in its body why it is one. Files that a program made are not counted.
"""
from __future__ import annotations

import re
import subprocess
import sys

INSERTIONS_MAX = 400
SUBJECT_LENGTH_MAX = 120
MADE_BY_PROGRAMS = re.compile(r"(^|/)(Cargo\.lock|.*\.safetensors|tokenizer\.json|goldens\.json|.*\.tsv|package-lock\.json)$")


def problems_of(subject: str, body: str, insertions: int) -> list[str]:
    out = []
    if insertions > INSERTIONS_MAX and not body.strip():
        out.append(f"inserts {insertions} lines, more than {INSERTIONS_MAX}, and its body gives no reason")
    if len(subject) > SUBJECT_LENGTH_MAX:
        out.append(f"its subject has {len(subject)} characters, at most {SUBJECT_LENGTH_MAX}")
    return out


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], check=True, capture_output=True, text=True).stdout


def insertions_of(commit: str) -> int:
    total = 0
    for line in git("show", "--numstat", "--format=", commit).splitlines():
        added, _, path = line.split("\t")
        if added != "-" and not MADE_BY_PROGRAMS.search(path):
            total += int(added)
    return total


def main(commits: str) -> int:
    failed = 0
    for commit in git("rev-list", "--no-merges", "--reverse", commits).split():
        subject, _, body = git("show", "-s", "--format=%B", commit).strip().partition("\n")
        for problem in problems_of(subject, body, insertions_of(commit)):
            print(f"{commit[:10]} {subject}: {problem}")
            failed = 1
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
