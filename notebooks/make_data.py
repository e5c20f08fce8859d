"""Writes the table that the notebooks read, from a sweep folder: `python notebooks/make_data.py out/stdlib_cpu`."""

from __future__ import annotations

import sys
from pathlib import Path

from analysis import load
from analysis.tables.results import arrange

DATA = Path(__file__).parent / "data"

if __name__ == "__main__":
    sweep = Path(sys.argv[1])
    DATA.mkdir(exist_ok=True)
    table = arrange(load(sweep))
    table.attrs = {}
    table.to_parquet(DATA / f"{sweep.name}.parquet", index=False)
