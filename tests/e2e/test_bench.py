"""`epic bench` measures the model that ships, and says what does not fit."""
from __future__ import annotations

import json
import subprocess

from server import BIN, MODEL


def bench(*flags: str, model=MODEL) -> subprocess.CompletedProcess:
    return subprocess.run([BIN / "epic", "bench", model, *flags], capture_output=True, text=True)


def test_bench_reports_every_case_with_its_bytes():
    done = bench("--prompt", "9", "--batch", "1,3", "--context", "0,70", "--steps", "2", "--rounds", "1", "--json",
                 "--kv-cache-dtype", "fp8", "--quantization", "int8", "--prompt-attention", "expanded")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert "kv:fp8/expanded/" in report["profile"]
    cases = [(r["kind"], r["context"], r["rows"]) for r in report["results"]]
    assert cases == [(k, c, n) for c in (0, 70) for k, n in (("prefill", 9), ("decode", 1), ("decode", 3))]
    for r in report["results"]:
        assert 0 < r["step_ms_p50"] <= r["step_ms_p90"] <= r["step_ms_p99"]
        assert 0 < r["floor_bytes"] < report["packed_bytes"] + (1 << 20)
    alone, three = report["results"][1], report["results"][2]
    assert alone["floor_bytes"] < three["floor_bytes"]


def test_bench_shortens_a_context_beyond_the_models_positions():
    done = bench("--prompt", "4", "--batch", "1", "--context", "99999", "--steps", "1", "--rounds", "1")
    assert done.returncode == 0, done.stderr
    assert "--context 99999: 4092, the model has 4096 positions" in done.stdout


def test_bench_says_what_is_wrong(tmp_path):
    assert "config.json" in bench(model=tmp_path).stderr
    assert "--steps: 5000, the model has 4096 positions" in bench("--steps", "5000").stderr
    assert "--batch" in bench("--batch", "0").stderr
