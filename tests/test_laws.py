from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from conftest import PLANTED

from analysis import laws
from analysis.laws import chinchilla


def test_chinchilla_by_hand() -> None:
    values = {"E": 1.5, "A": 8.0, "B": 27.0, "alpha": 0.5, "beta": 1 / 3}
    assert chinchilla(values, {"params": 16.0, "tokens": 27.0}) == pytest.approx(1.5 + 2 + 9)
    assert chinchilla.describe(values) == "L(N, D) = 1.5 + 8/N^0.500 + 27/D^0.333"


def test_draws_broadcast_against_points_in_double_precision() -> None:
    draws = {name: np.array([[value], [value * 1.1]]) for name, value in PLANTED.items()}
    out = chinchilla(draws, pd.DataFrame({"params": [1e7, 1e8, 1e9], "tokens": [1e9, 1e10, 1e11]}))
    assert out.shape == (2, 3)
    assert out.dtype == np.float64
    assert out[0, 1] == pytest.approx(1.7 + 420 / 1e8**0.35 + 1800 / 1e10**0.37, rel=1e-14)


@pytest.mark.parametrize("law", list(laws.laws()), ids=lambda law: law.name)
def test_a_law_describes_itself_whole(law: laws.Law) -> None:
    assert laws.find(law.name) is law
    assert law.source
    assert set(law.bounds) == set(law.parameters)
    assert set(law.grid) == set(law.parameters) - set(law.linear_in)
    for name, starts in law.grid.items():
        low, high = law.bounds[name]
        assert all(low < start < high for start in starts)


@pytest.mark.parametrize("law", list(laws.laws()), ids=lambda law: law.name)
def test_linear_parameters_are_linear(law: laws.Law) -> None:
    point = {name: np.array([3e7]) for name in law.columns}
    base = {name: law.grid[name][0] if name in law.grid else 1.0 for name in law.parameters}
    for name in law.linear_in:
        at = [law({**base, name: value}, point)[0] for value in (0.0, 1.0, 2.0)]
        assert at[2] - at[1] == pytest.approx(at[1] - at[0], rel=1e-9)


def test_an_unknown_law_is_named() -> None:
    with pytest.raises(KeyError, match=r"chinchila.*known: chinchilla"):
        laws.find("chinchila")
