"""CPU seconds and peak memory of `scaling fit --no-panel` on large tables of a planted law, and of `scaling report` on
a sweep of as many runs with loss curves.

    python benchmarks/large_tables.py 10000 100000 1000000
    python benchmarks/large_tables.py report 4000

Each table is made in a temporary folder, with one run a row at random params and tokens; each run of a sweep has 50
logged steps. Each command is a process of its own, with the default 512 draws; its CPU seconds hold imports and
compilation. Prints one line of JSON a command.
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

from scaling.record.run_folder import write_result


def make_runs(rows: int) -> pd.DataFrame:
    """Runs of Chinchilla's law with normal noise of 0.003 in log loss: run_id, params, tokens, loss."""
    generator = np.random.default_rng(0)
    params = 10 ** generator.uniform(7, 10, rows)
    tokens = 10 ** generator.uniform(8, 11, rows)
    loss = (1.69 + 406.4 / params**0.34 + 410.7 / tokens**0.28) * np.exp(generator.normal(0, 3e-3, rows))
    names = [f"run{i}" for i in range(rows)]
    return pd.DataFrame({"run_id": names, "params": params, "tokens": tokens, "loss": loss})


def write_sweep(folder: Path, rows: int) -> None:
    """Writes the run folders of a sweep: a result and 50 logged steps each, whose loss falls to the final one."""
    share = np.arange(1, 51) / 50
    for run in make_runs(rows).itertuples(index=False):
        tokens = int(run.tokens)
        row = {"run_id": run.run_id, "seed": 0, "tokens": tokens, "loss": run.loss, "batch_tokens": tokens // 1000}
        row |= dict.fromkeys(("params_total", "params_non_embedding", "params_matmul"), int(run.params))
        row |= {"flops": 6.0 * run.params * tokens, "learning_rate": 1e-3, "schedule": "wsd"}
        write_result(folder / "runs" / run.run_id, status="done", row=row, measurements={}, durable=False)
        curve = zip(share, run.loss * share**-0.1, strict=True)
        lines = (
            {"step": round(1000 * s), "tokens": round(tokens * s), "loss": loss, "learning_rate": 1e-3 * (1.02 - s)}
            for s, loss in curve
        )
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / "runs" / run.run_id / "metrics.jsonl").write_text(text)


def measure(command: list[str]) -> dict[str, float]:
    """CPU seconds and peak resident memory, in GB, of a command. Raises RuntimeError if it fails."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit code {process.returncode}")
    return {"cpu_seconds": usage.ru_utime + usage.ru_stime, "peak_gb": usage.ru_maxrss / 1e6}


def measure_verb(verb: str, rows: int, *arguments: object) -> None:
    """Runs a verb and prints a line of JSON."""
    measured = measure([sys.executable, "-m", "scaling.cli", verb, *map(str, arguments)])
    facts = {"verb": verb, "rows": rows} | {name: round(value, 2) for name, value in measured.items()}
    print(json.dumps(facts), flush=True)


def main() -> None:
    arguments = sys.argv[1:] or ["10000", "100000"]
    for rows in map(int, arguments[arguments[0] == "report" :]):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            if arguments[0] == "report":
                write_sweep(folder, rows)
                measure_verb("fit", rows, folder, "--no-panel")
                measure_verb("report", rows, folder)
            else:
                make_runs(rows).to_csv(folder / "runs.csv", index=False)
                measure_verb("fit", rows, folder / "runs.csv", "--no-panel")


if __name__ == "__main__":
    main()
