"""Shows some heads of a model in training where to look, so that it learns to copy from its context within minutes.

Copying "what followed the same tokens before" takes heads of two layers (Olsson et al., "In-context Learning and Induction
Heads", 2022): one tells every position which tokens precede it, another looks for a position that was told the tokens
which now end the text. Left alone they come late, after more samples than a CPU gets through in an evening. Here a loss
asks heads of the first two layers to look at the 1st to 6th token back, and heads of the next ones at the source, wherever the
text before settles it. The loss fades away while training goes on; nothing of it is left in the model.
"""
from __future__ import annotations

import numpy as np
import torch

# (layer, head) -> how many tokens back it is shown; and the heads that are shown the source.
BACK = {(0, 0): 1, (0, 1): 2, (0, 2): 3, (0, 3): 4, (1, 0): 5, (1, 1): 6}
MATCH = ((2, 0), (2, 1), (3, 0))
LONGEST = max(BACK.values())


def sources(ids: list[int], begin: int) -> np.ndarray:
    """(n, n) of bool for the n tokens of a sample: row t holds the positions whose token is the one after t, where t >= begin - 1
    and the longest run of tokens up to t that occurred before was followed by that token each time. Other rows are empty."""
    x, n = np.array(ids), len(ids)
    out = np.zeros((n, n), bool)
    run = np.zeros(n, int)  # run[q]: how many tokens up to q equal those up to t
    for t in range(n - 1):
        run = np.where(x == x[t], np.concatenate([[0], run[:-1]]) + 1, 0)
        if t < begin - 1 or t == 0:
            continue
        before = np.minimum(run[:t], LONGEST)
        longest = before.max()
        places = np.flatnonzero(before == longest) + 1
        if longest and (x[places] == x[t + 1]).all():
            out[t, places] = True
    return out


def loss(attention: list[torch.Tensor], positions: torch.Tensor, sources: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The losses of BACK and of MATCH. attention: one (B, H, T, T) of probabilities per layer; positions (B, T), within each
    sample; sources (B, T, T)."""
    back = []
    for (layer, head), distance in BACK.items():
        shown = attention[layer][:, head].diagonal(-distance, 1, 2)
        back.append(-shown[positions[:, distance:] >= distance].clamp_min(1e-6).log().mean())
    asked = sources.any(-1)
    match = [-(attention[layer][:, head] * sources).sum(-1)[asked].clamp_min(1e-6).log().mean() for layer, head in MATCH]
    return torch.stack(back).mean(), torch.stack(match).mean()
