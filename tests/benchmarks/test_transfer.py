"""The page of the transfer benchmark: optima from planted parabolas, and the committed page is what its file gives."""

from __future__ import annotations

import json
import math
import sys
from typing import Any

import numpy as np
import pytest

from tests.conftest import ROOT

BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture(scope="module")
def report() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        patch.delitem(sys.modules, "transfer", raising=False)
        import transfer_report  # pyrefly: ignore

        yield transfer_report


def runs(vertex: float, noise: float = 0.0, lost: tuple[int, ...] = ()) -> list[dict[str, Any]]:
    """Two seeds of eight rates whose loss is a parabola about log2 rate `vertex`; at `lost` powers both diverged."""
    draw = np.random.default_rng(0).normal
    return [
        {
            "learning_rate": 2.0**power,
            "seed": seed,
            "loss": None if power in lost else 2 + 0.1 * seed + 0.05 * (power - vertex) ** 2 + noise * draw(),
        }
        for seed in (0, 1)
        for power in range(-10, -2)
    ]


def test_a_planted_vertex_is_found_with_its_error(report: Any) -> None:
    exact = report.optimum(32, runs(-6.3))
    assert exact.rate == pytest.approx(-6.3, abs=1e-6)
    assert exact.stderr < 1e-6
    noisy = report.optimum(32, runs(-6.3, noise=0.01))
    assert 0 < abs(noisy.rate + 6.3) < 3 * noisy.stderr < 0.5
    assert exact.excess(-6.0) == pytest.approx(0)
    assert exact.excess(-4.0) == pytest.approx(0.05 * (2.3**2 - 0.3**2))


def test_a_seed_whose_scan_is_not_whole_is_left_out(report: Any) -> None:
    whole = [run for run in runs(-6.3, noise=0.01) if run["seed"] == 0]
    assert report.optimum(32, runs(-6.3, noise=0.01)[:-3]).rate == report.optimum(32, whole).rate


def test_rates_that_diverged_are_no_minimum(report: Any) -> None:
    optimum = report.optimum(32, runs(-6.3, lost=(-5, -4, -3)))
    assert optimum.rate == pytest.approx(-6.3, abs=1e-6)


@pytest.mark.parametrize("vertex", [-12.0, -1.0])
def test_the_edge_of_a_scan_is_no_optimum(report: Any, vertex: float) -> None:
    optimum = report.optimum(32, runs(vertex))
    assert math.isinf(optimum.stderr)
    assert optimum.rate in (-10, -3)


def test_drift_and_verdict_of_planted_optima(report: Any) -> None:
    def optima(slope: float, error: float, octaves: int = 3) -> list[Any]:
        none = np.zeros(1)
        return [report.Optimum(2**k, slope * k - 6, error, none, none, 1) for k in range(octaves + 1)]

    assert report.drift(optima(-1, 0.1))[0] == pytest.approx(-1)
    assert report.drift(optima(-1, 0.1))[1] == pytest.approx(0.1 / math.sqrt(5))
    assert [report.verdict(optima(*case)) for case in ((-1, 0.1), (0.1, 0.1), (0.3, 1.0))] == [
        "moves",
        "stays",
        "undecided",
    ]


def test_the_page_is_what_its_files_give(report: Any) -> None:
    facts, coordinates = (json.loads(path.read_text()) for path in (report.JSON, report.COORDINATES))
    assert report.text(facts, coordinates) == (report.DOCS / "transfer.md").read_text()
