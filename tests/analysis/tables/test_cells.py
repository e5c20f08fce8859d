from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.tables.cells import extend_to_cells

POINTS = pd.DataFrame(
    {
        "run_id": ["small", "large", "large", "twin", "twin", "other"],
        "params": [1.0, 2.0, 2.0, 2.0, 2.0, 2.0],
        "tokens": [8.0, 4.0, 8.0, 4.0, 8.0, 4.0],
    }
)


def test_a_cell_goes_with_all_its_seeds_and_their_checkpoints() -> None:
    largest = np.arange(6) == 4
    assert extend_to_cells(POINTS, largest, ("params", "tokens")).tolist() == [False, True, True, True, True, False]


def test_without_run_ids_only_the_rows_of_the_cell_go() -> None:
    rows = POINTS.drop(columns="run_id")
    assert extend_to_cells(rows, np.arange(6) == 4, ["params", "tokens"]).tolist() == [0, 0, 1, 0, 1, 0]


def test_nothing_held_out_stays_nothing() -> None:
    assert not extend_to_cells(POINTS, np.zeros(6, bool), ("params", "tokens")).any()
