"""Roads from training to accuracy: one law, or two in a row.

A model's last law is fitted to the accuracy itself, never to its logarithm, by squares weighted by the standard error:
runs at or below chance are evidence too, and a logarithm of what is left above chance would drop or magnify them. Not
in the design's list of modules: downstream.py judges tasks,
this fits them, and road_choice.py compares them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.fitting import bootstrap
from analysis.fitting.fit import Objective, fit_each_weighting, mse, mse_log, refit_from_starts
from analysis.laws import Law, chinchilla
from analysis.laws.accuracy import (
    exponential_error,
    log_centred,
    log_centred_surface,
    sigmoid_accuracy,
    sigmoid_centred,
)

RUN_COLUMNS = ("flops", "params", "tokens", "chance", "ceiling")  # what is known of a run before it is trained
MIN_RESPONSE = 1e-3  # the starts of some laws divide by the response


@dataclass(frozen=True)
class Step:
    """A law, and the column that it is to predict: `accuracy`, `error` (its rest), or what the next step reads."""

    law: Law
    response: str


@dataclass(frozen=True)
class AccuracyModel:
    """Laws, one after the other: each reads what is known of a run, and what those before it predicted."""

    name: str
    steps: tuple[Step, ...]
    source: str

    @property
    def parameter_count(self) -> int:
        return sum(len(step.law.parameters) for step in self.steps)


COMPUTE = AccuracyModel("compute", (Step(log_centred, "accuracy"),), "one step, arXiv 2512.08894, eq. 2")
PARAMS_AND_TOKENS = AccuracyModel(
    "params and tokens", (Step(log_centred_surface, "accuracy"),), "one step, arXiv 2512.08894, eq. 4"
)
_BITS_STEP = Step(chinchilla, "bits_per_byte")
BITS_SIGMOID = AccuracyModel(
    "bits, sigmoid",
    (_BITS_STEP, Step(sigmoid_centred, "accuracy")),
    "two steps, Bhagia et al. 2024, levels held",
)
BITS_FREE_SIGMOID = AccuracyModel(
    "bits, free sigmoid", (_BITS_STEP, Step(sigmoid_accuracy, "accuracy")), "two steps, Bhagia et al. 2024"
)
LOSS_EXPONENTIAL = AccuracyModel(
    "loss, exponential",
    (Step(chinchilla, "loss"), Step(exponential_error, "error")),
    "two steps, Gadre et al. 2024, eq. 5",
)
ACCURACY_MODELS = (COMPUTE, PARAMS_AND_TOKENS, BITS_SIGMOID, BITS_FREE_SIGMOID, LOSS_EXPONENTIAL)


@dataclass(frozen=True)
class ResampledModel:
    """A model with its own values of each step, [1, parameters], and resampled ones, [draws, parameters]."""

    model: AccuracyModel
    values: tuple[np.ndarray, ...]
    draws: tuple[np.ndarray, ...]


def fit(model: AccuracyModel, points: pd.DataFrame, kept: np.ndarray) -> tuple[np.ndarray, ...]:
    """Each step fitted cold to each row of kept runs: [rows, parameters] a step.

    Args:
      points: columns KNOWN, those that the steps predict, and their weights as `<column>_weight`.
      kept: [rows, points], 1 or how often a run counts, 0 to leave it out.
    """
    return tuple(
        fit_each_weighting(step.law, points, _response(step, points), _objective(step), kept * _weights(step, points))[
            0
        ]
        for step in model.steps
    )


def predict(model: AccuracyModel, values: Sequence[np.ndarray], targets: pd.DataFrame) -> np.ndarray:
    """Accuracies between 0 and the ceiling, [rows, targets], of values [rows, parameters] a step."""
    known: dict[str, np.ndarray] = {name: targets[name].to_numpy(float) for name in RUN_COLUMNS}
    for step, rows in zip(model.steps, values, strict=True):
        named = {name: rows[:, [i]] for i, name in enumerate(step.law.parameters)}
        known[step.response] = step.law(named, known)
    accuracy = 1 - known["error"] if "error" in known else known["accuracy"]
    return np.clip(accuracy, 0.0, known["ceiling"])


def feasible_models(
    models: Sequence[AccuracyModel], points: pd.DataFrame, kept: np.ndarray | None = None
) -> tuple[AccuracyModel, ...]:
    """Roads whose columns the points have, with more distinct cells than parameters at every step."""
    rows = points if kept is None else points[kept]
    return tuple(model for model in models if all(_is_feasible(step, rows) for step in model.steps))


def _is_feasible(step: Step, rows: pd.DataFrame) -> bool:
    needed = [name for name in (*step.law.columns, step.response) if name != "error"]
    if not all(name in rows and rows[name].notna().all() for name in needed):
        return False
    return len(rows[list(step.law.columns)].drop_duplicates()) > len(step.law.parameters)


def fit_resamples(model: AccuracyModel, points: pd.DataFrame, draws: int, seed: int) -> tuple[ResampledModel, str]:
    """A model fitted to points and to resamples of their trunks, and a warning where those are too few for that."""
    values = fit(model, points, np.ones((1, len(points))))
    widest = max((step.law for step in model.steps), key=lambda law: len(law.parameters))
    unit, note = bootstrap.choose_clusters(points, len(widest.parameters))
    parts: list[tuple[np.ndarray, ...]] = []
    for times in bootstrap.draw_weight_blocks(points, widest, unit, draws=draws, seed=seed):
        parts.append(tuple(_refit(step, start, points, times) for step, start in zip(model.steps, values, strict=True)))
    return ResampledModel(model, values, tuple(np.concatenate(rows) for rows in zip(*parts, strict=True))), note


def _refit(step: Step, start: np.ndarray, points: pd.DataFrame, times: np.ndarray) -> np.ndarray:
    starts = np.repeat(start, len(times), axis=0)
    weights = times * _weights(step, points)
    return refit_from_starts(step.law, _objective(step), starts, points, _response(step, points), weights)[0]


def _response(step: Step, points: pd.DataFrame) -> np.ndarray:
    """What the step is fitted to; a share of exactly zero is moved up by less than any measurement resolves."""
    return np.maximum(points[step.response].to_numpy(float), MIN_RESPONSE)


def _objective(step: Step) -> Objective:
    return mse if step.response in ("accuracy", "error") else mse_log


def _weights(step: Step, points: Mapping[str, pd.Series] | pd.DataFrame) -> np.ndarray:
    name = "accuracy" if step.response == "error" else step.response
    return np.asarray(points[f"{name}_weight"], float)
