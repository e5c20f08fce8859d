"""Compiles a 1B and an 8B shape for TPU slices of 16 and 256 chips, on this CPU and without a TPU.

    python benchmarks/topologies.py            # all rows, one after another, into benchmarks/topologies.json
    python benchmarks/topologies.py v6e 8b     # only rows whose names contain these words; the others stay

Needs `pip install 'scaling-laws[tpu-aot]'`. Times and MFU are rooflines, not measurements.
"""

from __future__ import annotations

import datetime
import json
import platform
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from scaling.accounting.chips import parse_topology
from scaling.commands.compile import published_run
from scaling.config.run_config import MeshConfig, RunConfig
from scaling.files import write_json
from scaling.performance.compile_ahead import compile_in_subprocess
from scaling.performance.roofline import Estimate

OUT = Path(__file__).with_suffix(".json")
PACKAGES = ("jax", "jaxlib", "libtpu", "flax", "optax")


@dataclass(frozen=True)
class Row:
    """One compile: a published shape on slices of a topology, one sequence of 2048 tokens a chip, all recomputed."""

    model: str
    parse_topology: str
    mesh: MeshConfig
    slices: int = 1

    @property
    def name(self) -> str:
        return f"{self.model} {self.topology}" + (f" x{self.slices}" if self.slices > 1 else "")

    @property
    def run(self) -> RunConfig:
        return published_run(self.model, parse_topology(self.topology, self.slices), self.mesh)


SIXTEEN, ALL = MeshConfig(fsdp=16), MeshConfig(fsdp=256)
ROWS = (
    Row("llama-3.2-1b", "v5e:4x4", SIXTEEN),
    Row("llama-3.2-1b", "v5e:16x16", SIXTEEN),
    Row("llama-3.2-1b", "v5p:2x2x4", SIXTEEN),
    Row("llama-3.2-1b", "v5p:4x8x8", SIXTEEN),
    Row("llama-3.2-1b", "v6e:4x4", SIXTEEN),
    Row("llama-3.2-1b", "v6e:16x16", SIXTEEN),
    Row("llama-3-8b", "v5e:4x4", SIXTEEN),
    Row("llama-3-8b", "v5e:16x16", ALL),
    Row("llama-3-8b", "v5p:2x2x4", SIXTEEN),
    Row("llama-3-8b", "v5p:4x8x8", ALL),
    Row("llama-3-8b", "v6e:4x4", SIXTEEN),
    Row("llama-3-8b", "v6e:16x16", ALL),
    Row("llama-3.2-1b", "v5e:4x4", MeshConfig(data=2, fsdp=8, tensor=2), slices=2),
    Row("llama-3-8b", "v6e:16x16", MeshConfig(data=2, fsdp=256), slices=2),
)


def measure(row: Row) -> dict[str, Any]:
    """The facts of one row, compiled now."""
    made: Estimate = compile_in_subprocess(row.run, parse_topology(row.topology, row.slices))
    return {"name": row.name, "model": row.model} | made.facts()


def read_rows() -> dict[str, dict[str, Any]]:
    """Rows written before, by name."""
    return {row["name"]: row for row in json.loads(OUT.read_text())["rows"]} if OUT.exists() else {}


def main(words: list[str]) -> None:
    """Compiles the rows whose names hold all the words, and writes after each, so that nothing is lost."""
    rows = read_rows()
    for row in ROWS:
        if all(word in row.name for word in words):
            rows[row.name] = measure(row)
            write_json(OUT, document([rows[one.name] for one in ROWS if one.name in rows]))
            print(f"{row.name}: {rows[row.name]['compile_seconds']:.0f} s", flush=True)
    Console().print(table(list(rows.values())))


def document(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The file: rows and what made them."""
    return {
        "date": datetime.date.today().isoformat(),
        "command": "python benchmarks/topologies.py",
        "convention": "MFU counts attention halved (causal) and no recomputation; times are rooflines, not measured",
        "versions": {"python": platform.python_version()} | {package: version(package) for package in PACKAGES},
        "rows": rows,
    }


def table(rows: list[dict[str, Any]]) -> Table:
    """One line a row; best: everything overlaps, worst: nothing does."""
    out = Table(box=None, pad_edge=False, collapse_padding=True)
    for heading in ("model", "topology", "mesh", "GiB", "of", "ms", "bound", "MFU", "to", "chip-hours"):
        out.add_column(heading, no_wrap=True)
    for row in rows:
        out.add_row(
            row["model"],
            row["topology"] + (f" x{row['slices']}" if row["slices"] > 1 else ""),
            "x".join(map(str, row["mesh"].values())),
            f"{row['peak'] / 2**30:.2f}",
            f"{row['hbm'] / 2**30:.0f}",
            f"{row['step_seconds']['overlapped'] * 1e3:.0f}",
            row["bound_by"],
            f"{row['mfu']['overlapped']:.0%}",
            f"{row['mfu']['in_turn']:.0%}",
            f"{row['chip_hours']['overlapped']:,.0f}",
        )
    return out


if __name__ == "__main__":
    main(sys.argv[1:])
