"""How far a run to forecast lies beyond the points of a fit, and whether its numbers are in the units of the fit.

A law predicts a number for any positive params and tokens. These warnings say where nobody has tested it, and where
the numbers are more likely those of another unit, or in the wrong order. The bounds are ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from analysis.tables.table_checks import IMPOSSIBLY_FEW, MAX_LOSS, UNITS

MAX_BEYOND = {"flops": 30.0, "params": 30.0, "tokens": 30.0}
"""Times the largest value that the fit saw beyond which a forecast is warned of: docs/coverage.md tests forecasts at up
to 30 times the compute."""
MAX_BELOW = 1e3  # the same below the smallest value, which matters less: small runs are cheap to make
_NAMES = {"params": "N", "tokens": "D", "flops": "C = 6 N D"}


def fitted_ranges(points: pd.DataFrame) -> dict[str, tuple[float, float]]:
    """Name -> (smallest, largest) of params, tokens and flops = 6 params tokens among the points of a fit."""
    columns = {"params": points["params"], "tokens": points["tokens"], "flops": 6 * points["params"] * points["tokens"]}
    return {name: (float(column.min()), float(column.max())) for name, column in columns.items()}


def times_beyond(ranges: Mapping[str, tuple[float, float]], params: float, tokens: float) -> dict[str, float]:
    """Name -> value of a run over the largest that the fit saw, for params, tokens and flops = 6 params tokens."""
    values = {"params": params, "tokens": tokens, "flops": 6 * params * tokens}
    return {name: values[name] / ranges[name][1] for name in ranges}


def warn_of_target(
    ranges: Mapping[str, tuple[float, float]], params: float, tokens: float, predicted: float
) -> list[str]:
    """Warnings about one run to forecast: swapped or wrong units, far from the fit, a loss that no run has.

    Args:
      ranges: of the fit, as from fitted_ranges.
      params, tokens: of the run, counts.
      predicted: its forecast, nats per token.
    """
    run = f"N = {params:g}, D = {tokens:g}"
    beyond = times_beyond(ranges, params, tokens)
    warnings = []
    far = [
        f"{_NAMES[name]} is {beyond[name]:.3g} times the largest ({ranges[name][1]:.3g})"
        for name in ("params", "tokens", "flops")
        if beyond[name] > MAX_BEYOND[name]
    ]
    values = {"params": params, "tokens": tokens}
    far += [
        f"{_NAMES[name]} is {values[name] / ranges[name][0]:.3g} times the smallest ({ranges[name][0]:.3g})"
        for name in values
        if values[name] < ranges[name][0] / MAX_BELOW
    ]
    if far:
        warnings.append(f"{run}: far outside the runs that the fit saw: {'; '.join(far)}. Nothing tests the law there")
    if hint := _suggest_units(ranges, values) or _suggest_swap(ranges, params, tokens):
        warnings.append(f"{run}: {hint}")
    if predicted > MAX_LOSS:
        warnings.append(
            f"{run}: the forecast, {predicted:.4g} nats, is above that of a uniform guess among 2^18 tokens "
            f"({MAX_LOSS:.1f}): no run has it"
        )
    return warnings


def describe_targets(points: pd.DataFrame, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Entries of forecast.json: times_largest, the last run over the largest that the fit saw (empty for a law that
    does not read params and tokens), and warnings about all runs.

    Args:
      points: those of the fit.
      rows: forecasts, as from `SavedFit.forecast`.
    """
    if not {"params", "tokens"} <= set(points):
        return {"times_largest": {}, "warnings": []}
    ranges = fitted_ranges(points)
    notes = [note for row in rows for note in warn_of_target(ranges, row["params"], row["tokens"], row["predicted"])]
    last = times_beyond(ranges, rows[-1]["params"], rows[-1]["tokens"])
    return {"times_largest": last, "warnings": list(dict.fromkeys(notes))}


def _suggest_units(ranges: Mapping[str, tuple[float, float]], values: Mapping[str, float]) -> str:
    """A guess at the unit of values that lie outside the fit by a power of a thousand, and what to type; else ""."""
    powers: dict[str, list[int]] = {}
    for name, value in values.items():
        low, high = ranges[name]
        # Below the fit the run's value is in a larger unit; above it the fit's own values are, if they are few.
        sign = 1 if value < low / MAX_BELOW else -1 if value > high * MAX_BELOW and high < IMPOSSIBLY_FEW else 0
        near = [p for p in UNITS if low / MAX_BEYOND[name] <= value * 10.0 ** (sign * p) <= high * MAX_BEYOND[name]]
        if sign and near:
            powers[name] = [sign * power for power in near]
    # People give params and tokens in one unit: units that suit both come first.
    common = set.intersection(*map(set, powers.values())) if powers else set()
    guesses = []
    for name, signed in powers.items():
        likely = [power for power in signed if power in common] or signed
        units = " or ".join(UNITS[abs(power)] for power in likely)
        typed = " or ".join(f"{values[name] * 10.0**power:g}" for power in likely)
        flag = "--params-value" if name == "params" else "--tokens"
        guesses.append(f"{name} of the {'run' if likely[0] > 0 else 'fit'} in {units}? then type {flag} {typed}")
    return "; ".join(guesses)


def _suggest_swap(ranges: Mapping[str, tuple[float, float]], params: float, tokens: float) -> str:
    """A note where params lie in the fit's range of tokens alone, and tokens in its range of params; else ""."""

    def lies_in(value: float, name: str) -> bool:
        return ranges[name][0] <= value <= ranges[name][1]

    if tokens >= params or not (lies_in(params, "tokens") and lies_in(tokens, "params")):
        return ""
    if lies_in(params, "params") and lies_in(tokens, "tokens"):
        return ""
    return f"fewer tokens than parameters: swapped? then type --params-value {tokens:g} --tokens {params:g}"
