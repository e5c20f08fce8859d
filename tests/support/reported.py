"""Writes the folder of a small sweep with everything that a report can show, generated from a known law in a second."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.tables import results

SIZES, HORIZONS = (1e4, 3e4, 1e5, 3e5), (1e6, 2e6, 4e6, 8e6, 16e6)
FAILED_RUN, OUTLIER_RUN = "run20", "run05"


def planted_table() -> pd.DataFrame:
    """20 runs of a known law, one of them flagged, and a failed run whose reason needs escaping in HTML."""
    n, d = (grid.ravel() for grid in np.meshgrid(SIZES, HORIZONS))
    noise = np.random.default_rng(0).normal(0, 2e-3, len(n))
    loss = (1.5 + 40 / n**0.4 + 900 / d**0.5) * np.exp(noise)
    rows = pd.DataFrame(
        {
            "run_id": [f"run{i:02}" for i in range(len(n))],
            "status": "done",
            "flags": "",
            "reason": "",
            "params_matmul": n,
            "params_total": 1.2 * n,
            "tokens": d,
            "unique_tokens": d,
            "flops": 6 * n * d,
            "loss": loss,
            "loss_stderr": 0.01,
            "bits_per_byte": loss / np.log(2),
            "seed": 0,
            "learning_rate": 0.01 * (n / 1e4) ** -0.4,
            "schedule": "wsd",
            "learning_rate_from": "scan: scans: 4 sizes x 5 rates",
        }
    )
    rows.loc[rows["run_id"] == OUTLIER_RUN, "flags"] = "off_collapse"
    failed = {"run_id": FAILED_RUN, "status": "failed", "flags": "failed", "reason": "<b>out of memory & time</b>"}
    return pd.concat([rows, pd.DataFrame([failed | {"params_matmul": 1e4, "tokens": 1e6}])], ignore_index=True)


def scan_table() -> pd.DataFrame:
    """Learning-rate scans: five rates about the best one at each size."""
    rows = []
    for place, size in enumerate(SIZES):
        for factor in (0.25, 0.5, 1.0, 2.0, 4.0):
            distance = np.log2(factor) + 0.2 * (-1) ** place
            loss, rate = 2 + 0.05 * distance**2, 0.01 * (size / 1e4) ** -0.4 * factor
            shape = {"width": 8 * (place + 1), "depth": 2, "tokens": 2e6, "batch_tokens": 512, "seed": 0}
            rows.append({"status": "done", "params_matmul": size, "learning_rate": rate, "loss": loss} | shape)
    return pd.DataFrame(rows)


def write_sweep(folder: Path) -> Path:
    """Writes the sweep with its run folders, and beside it the sweep of its scans. Returns the folder of the sweep."""
    sweep = folder / "made"
    results.write_table(planted_table(), sweep)
    results.write_table(scan_table(), folder / "scans")
    (sweep / "plan.json").write_text(json.dumps({"sweep": "made"}))
    for run, tokens, loss in planted_table()[["run_id", "tokens", "loss"]].dropna().itertuples(index=False):
        run_folder = sweep / "runs" / run
        run_folder.mkdir(parents=True)
        bend = 1.08 if run == OUTLIER_RUN else 1.0
        lines = [
            {
                "step": i,
                "tokens": tokens * i / 100,
                "loss": bend * loss * (100 / i) ** 0.2,
                "learning_rate": 1.0 - i / 101,
            }
            for i in range(1, 101)
        ]
        (run_folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
        environment = {
            "packages": {"jax": "9.9.9"},
            "commit": "c0ffee" * 6,
            "devices": ["abacus"],
            "attention_kernel": "beads",
        }
        (run_folder / "environment.json").write_text(json.dumps(environment))
        data = {"corpus": "tales", "vocabulary": "byte", "fingerprint": "f1f1"}
        (run_folder / "config.json").write_text(json.dumps({"data": data, "measure": {"validation_tokens": 4096}}))
    return sweep
