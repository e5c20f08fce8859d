"""Cells of a table: runs of one setting, such as seeds of the same params and tokens, whose losses go together.

A test of a forecast on runs whose twins were fitted tests nothing, so hold-outs take whole cells and whole runs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd


def extend_to_cells(points: pd.DataFrame, is_held_out: np.ndarray, columns: Sequence[str]) -> np.ndarray:
    """Whether each row is to be held out with those of a hold-out: [rows] of bool.

    That is every row (checkpoint) of every run that has a row in the cell of a held-out row.

    Args:
      points: the columns, and optionally run_id.
      is_held_out: the rows that a rule holds out: [rows] of bool.
      columns: those whose values make a cell, such as params and tokens.
    """
    is_held_out = np.asarray(is_held_out, bool)
    if not is_held_out.any() or is_held_out.all():
        return is_held_out
    cell = points.groupby(list(columns), sort=False).ngroup().to_numpy()
    extended = is_held_out | np.isin(cell, cell[is_held_out])
    if "run_id" in points:
        extended |= points["run_id"].isin(points["run_id"][extended]).to_numpy()
    return extended
