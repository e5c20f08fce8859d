"""The named sweeps, held still: a changed default shows up here as a changed golden file.

Rewrite the golden files, after reading the difference, with: python tests/sweeps/catalog/test_stdlib_cpu.py
"""

import json

import pytest

from scaling.accounting.counts import count_params
from scaling.config.run_config import to_dict
from scaling.recipes.recipes import SEQUENCE_LENGTH
from sweeps.catalog import smoke, stdlib_cpu
from sweeps.planning.plan import find_sweep
from tests.conftest import ROOT

GOLDEN = ROOT / "tests" / "golden"
CELLS = stdlib_cpu.sweep().cells


def golden(name: str) -> dict:
    """First and last config of a sweep and all its run_ids, before a plan fills in the fingerprint of the corpus. Of
    where a learning rate comes from, only the kind."""
    cells = find_sweep(name).cells
    first, last = (to_dict(cell) for cell in (cells[0], cells[-1]))
    for config in (first, last):
        config["learning_rate_from"] = config["learning_rate_from"].partition(":")[0]
    return {"first": first, "last": last, "run_ids": [cell.run_id for cell in cells]}


@pytest.mark.parametrize("name", ["stdlib_cpu", "smoke"])
def test_golden(name):
    assert golden(name) == json.loads((GOLDEN / f"{name}.json").read_text())


def test_spans_sizes_and_horizons_as_promised():
    sizes = {(c.model.width, c.model.depth): count_params(c.model).matmul for c in CELLS}
    horizons = {c.tokens for c in CELLS}
    assert len(sizes) >= 5
    assert max(sizes.values()) >= 20 * min(sizes.values())
    assert len(horizons) >= 4
    assert max(horizons) >= 8 * min(horizons)
    assert len(CELLS) == len(sizes) * len(horizons) == len({c.run_id for c in CELLS})


def test_last_cell_is_the_largest_run():
    last = CELLS[-1]
    assert count_params(last.model).matmul == max(count_params(c.model).matmul for c in CELLS)
    assert last.tokens == max(c.tokens for c in CELLS)


def test_cells_compare():
    """Same data, same batch, same measurement."""
    assert {c.data for c in CELLS} == {CELLS[0].data}
    assert {c.measure for c in CELLS} == {CELLS[0].measure}
    assert {c.data.sequence_length for c in CELLS} == {SEQUENCE_LENGTH}
    assert CELLS[0].data.corpus == "stdlib"
    assert len({c.name for c in CELLS}) == len(CELLS)


def test_smoke_is_small_and_whole():
    cells = smoke.sweep().cells
    assert len(cells) == 8
    assert sum(c.steps for c in cells) < 200
    assert all(c.measure.checkpoint_every_tokens for c in cells)


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for sweep in ("stdlib_cpu", "smoke"):
        (GOLDEN / f"{sweep}.json").write_text(json.dumps(golden(sweep), indent=1) + "\n")
