"""Trains the tiny model on a CPU: `python train.py OUT MINUTES [RESUME]`.

OUT holds the tokenizer and gets state.pt. RESUME is what to train on from: a published folder or an earlier state.pt.
"""
from __future__ import annotations

import collections
import math
import random
import sys
import time

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

import guidance
import published
import tasks
from model import Model

ROWS, LENGTH, LR, RESUME_LR, MTP_WEIGHT, BIAS_STEP = 8, 320, 2.5e-3, 7e-4, 0.3, 0.002
GUIDANCE, GUIDED = 0.2, 0.7  # the weight of each guidance loss, and the share of the time in which it fades away
SAVE_EVERY = 50


def batches(tok: Tokenizer, seed: int):
    """ids, targets (-100 where nothing is to be learnt), positions and segments, all (ROWS, LENGTH), samples packed;
    guidance.sources (ROWS, LENGTH, LENGTH); and of each sample its task, row, begin and end."""
    r = random.Random(seed)
    left = None
    while True:
        x = torch.zeros(4, ROWS, LENGTH, dtype=torch.long)
        x[1] = -100
        x[3] = -1
        sources, spans = torch.zeros(ROWS, LENGTH, LENGTH, dtype=torch.bool), []
        for row in range(ROWS):
            at, segment = 0, 0
            while True:
                if left is None:
                    s = tasks.draw(r)
                    p = tok.encode(tasks.prompt_of(s), add_special_tokens=False).ids
                    reply = [i for piece in tasks.reply_of(s) for i in tok.encode(piece, add_special_tokens=False).ids]
                    left = (s.task, p, p + reply)
                task, p, ids = left
                n = len(ids)
                if at + n > LENGTH:
                    break
                x[0, row, at:at + n] = torch.tensor(ids)
                x[1, row, at + len(p) - 1:at + n - 1] = torch.tensor(ids[len(p):])
                x[2, row, at:at + n] = torch.arange(n)
                x[3, row, at:at + n] = segment
                sources[row, at:at + n, at:at + n] = torch.from_numpy(guidance.sources(ids, len(p)))
                spans.append((task, row, at, at + n))
                at, segment, left = at + n, segment + 1, None
        yield *x.unbind(), sources, spans


def main(out: str, minutes: float, resume: str | None = None) -> None:
    torch.manual_seed(1)
    tok, model = Tokenizer.from_file(f"{out}/tokenizer.json"), Model()
    if resume:
        model.load_state_dict(torch.load(resume) if resume.endswith(".pt") else published.load(resume))
    decay = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() <= 1]
    opt = torch.optim.AdamW([{"params": decay, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}],
                            lr=LR, betas=(0.9, 0.95), fused=True)
    start, data = time.time(), batches(tok, int(time.time()) if resume else 3)
    seen, right = 0, collections.defaultdict(list)
    for step, (x, y, positions, segments, sources, spans) in enumerate(data):
        done = (time.time() - start) / (60 * minutes)
        if done >= 1:
            break
        lr = (RESUME_LR if resume else LR) * min(1, (step + 1) / 40) * (0.5 * (1 + math.cos(math.pi * done)) * 0.98 + 0.02)
        for g in opt.param_groups:
            g["lr"] = lr
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits, after = model(x, positions, segments)
        loss = F.cross_entropy(logits.float().flatten(0, 1), y.flatten(), ignore_index=-100)
        later = y[:, 1:].masked_fill(segments[:, 1:] != segments[:, :-1], -100)
        mtp = F.cross_entropy(after.float().flatten(0, 1), later.flatten(), ignore_index=-100)
        opt.zero_grad(set_to_none=True)
        total, guided = loss + MTP_WEIGHT * mtp, ""
        if done < GUIDED:
            back, match = guidance.loss(model.attention(), positions, sources)
            total = total + GUIDANCE * (1 - done / GUIDED) * (back + match)
            guided = f"back {back.item():.3f} match {match.item():.3f} "
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        for moe in model.gates():
            moe.gate.e_score_correction_bias += BIAS_STEP * (moe.load.mean() - moe.load).sign() * (1 - done)
        seen += x.numel()
        hits = (logits.argmax(-1) == y) | (y == -100)
        for task, row, begin, end in spans:
            right[task].append(hits[row, begin:end].all().item())
        if step % 25 == 0:
            skew = max((m.load.max() / m.load.mean()).item() for m in model.gates())
            print(f"{step} {100 * done:.1f}% loss {loss.item():.4f} mtp {mtp.item():.4f} {guided}lr {lr:.5f} "
                  f"skew {skew:.2f} tokens/s {seen / (time.time() - start):.0f}", flush=True)
        if step % SAVE_EVERY == SAVE_EVERY - 1:
            torch.save(model.state_dict(), f"{out}/state.pt")
            # Of samples that were new when asked: all tokens of the reply right, each given the right ones before it.
            print(" ".join(f"{task} {100 * sum(r) / len(r):.0f}%" for task, r in sorted(right.items())), flush=True)
            right.clear()
    torch.save(model.state_dict(), f"{out}/state.pt")


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), *sys.argv[3:])
