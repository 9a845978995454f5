"""Writes a training run's state as a published checkpoint: `python export.py RUN OUT`."""
from __future__ import annotations

import os
import shutil
import sys

import torch

import published


def main(run: str, out: str) -> None:
    published.save(torch.load(f"{run}/state.pt"), out)
    for f in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(f"{run}/{f}", out)
    print(out, os.path.getsize(f"{out}/model.safetensors") >> 20, "MiB")


if __name__ == "__main__":
    main(*sys.argv[1:3])
