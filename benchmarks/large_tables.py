"""CPU seconds and peak memory of `scaling fit --no-panel` on large tables of a planted law.

    python benchmarks/large_tables.py 10000 100000 1000000

Each table is made in a temporary folder, with one run a row at random params and tokens. Each fit is a process of its
own, with the default 512 draws; its CPU seconds hold imports and compilation. Prints one line of JSON a table.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd


def write_runs(path: Path, rows: int) -> None:
    """Writes a CSV of runs of Chinchilla's law with normal noise of 0.003 in log loss."""
    generator = np.random.default_rng(0)
    params = 10 ** generator.uniform(7, 10, rows)
    tokens = 10 ** generator.uniform(8, 11, rows)
    loss = (1.69 + 406.4 / params**0.34 + 410.7 / tokens**0.28) * np.exp(generator.normal(0, 3e-3, rows))
    names = [f"run{i}" for i in range(rows)]
    pd.DataFrame({"run_id": names, "params": params, "tokens": tokens, "loss": loss}).to_csv(path, index=False)


def measure(command: list[str]) -> dict[str, float]:
    """CPU seconds and peak resident memory, in GB, of a command. Raises RuntimeError if it fails."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit code {process.returncode}")
    return {"cpu_seconds": usage.ru_utime + usage.ru_stime, "peak_gb": usage.ru_maxrss / 1e6}


def main() -> None:
    for rows in map(int, sys.argv[1:] or ("10000", "100000")):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "runs.csv"
            write_runs(path, rows)
            measured = measure([sys.executable, "-m", "scaling.cli", "fit", str(path), "--no-panel"])
        print(json.dumps({"rows": rows} | {name: round(value, 2) for name, value in measured.items()}), flush=True)


if __name__ == "__main__":
    main()
