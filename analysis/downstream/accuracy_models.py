"""Accuracy models: laws that lead from the scale of a run to its accuracy on a task, in one step or in two.

One-step models give accuracy from compute, or from parameters and tokens. Two-step models first give the bits per byte
of the right answer, or the loss, and then accuracy from that. The last law of a model is fitted to the accuracy itself,
never to a logarithm of it, by least squares weighted by the standard error: runs at or below chance are evidence too,
and a logarithm of the part above chance would drop or magnify them. model_choice.py compares the models.
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

RUN_COLUMNS = (
    "flops",
    "params",
    "tokens",
    "chance",
    "ceiling",
)  # what a model may read of a run that is not trained yet
MIN_RESPONSE = 1e-3  # least response that is fitted: the starts of some laws divide by the response


@dataclass(frozen=True)
class Step:
    """A law, and the column that it predicts: `accuracy`, `error` (1 - accuracy), or one that the next law reads."""

    law: Law
    response: str


@dataclass(frozen=True)
class AccuracyModel:
    """Laws, applied one after the other: each reads RUN_COLUMNS and what the laws before it predict.

    source: the paper and the equation.
    """

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
    """A fitted model and its fits to resamples of the points.

    values: parameters of each step, fitted to all points, [1, parameters].
    draws: parameters of each step, fitted to resamples, [draws, parameters].
    """

    model: AccuracyModel
    values: tuple[np.ndarray, ...]
    draws: tuple[np.ndarray, ...]


def fit(model: AccuracyModel, points: pd.DataFrame, counts: np.ndarray) -> tuple[np.ndarray, ...]:
    """Fits each step from the law's own starting values, once for each row of counts: [rows, parameters] a step.

    Args:
      points: RUN_COLUMNS, the columns that the steps predict, and their weights as `<column>_weight`.
      counts: [rows, points], how often each point counts; 0 leaves it out.
    """
    return tuple(
        fit_each_weighting(
            step.law, points, _response(step, points), _objective(step), counts * _weights(step, points)
        )[0]
        for step in model.steps
    )


def predict(model: AccuracyModel, values: Sequence[np.ndarray], targets: pd.DataFrame) -> np.ndarray:
    """Predicts accuracies, [rows, targets], clipped to 0 and the ceiling.

    Args:
      values: parameters of each step, [rows, parameters].
      targets: RUN_COLUMNS.
    """
    columns: dict[str, np.ndarray] = {name: targets[name].to_numpy(float) for name in RUN_COLUMNS}
    for step, rows in zip(model.steps, values, strict=True):
        parameters = {name: rows[:, [i]] for i, name in enumerate(step.law.parameters)}
        columns[step.response] = step.law(parameters, columns)
    accuracy = 1 - columns["error"] if "error" in columns else columns["accuracy"]
    return np.clip(accuracy, 0.0, columns["ceiling"])


def feasible_models(
    models: Sequence[AccuracyModel], points: pd.DataFrame, mask: np.ndarray | None = None
) -> tuple[AccuracyModel, ...]:
    """The models whose columns the points have, and for whose every step there are more distinct cells than parameters.

    mask: [points], the points to count; all unless given.
    """
    rows = points if mask is None else points[mask]
    return tuple(model for model in models if all(_is_feasible(step, rows) for step in model.steps))


def _is_feasible(step: Step, rows: pd.DataFrame) -> bool:
    needed = [name for name in (*step.law.columns, step.response) if name != "error"]
    if not all(name in rows and rows[name].notna().all() for name in needed):
        return False
    return len(rows[list(step.law.columns)].drop_duplicates()) > len(step.law.parameters)


def fit_resamples(model: AccuracyModel, points: pd.DataFrame, draws: int, seed: int) -> tuple[ResampledModel, str]:
    """Fits a model to points and to resamples of their trunks; a resample is the same in all steps.

    Returns the fits, and a warning if the trunks are too few to be resampled ("" otherwise).
    """
    values = fit(model, points, np.ones((1, len(points))))
    largest_law = max((step.law for step in model.steps), key=lambda law: len(law.parameters))
    unit, warning = bootstrap.choose_clusters(points, len(largest_law.parameters))
    blocks: list[tuple[np.ndarray, ...]] = []
    for counts in bootstrap.draw_weight_blocks(points, largest_law, unit, draws=draws, seed=seed):
        steps = zip(model.steps, values, strict=True)
        blocks.append(tuple(_refit(step, start, points, counts) for step, start in steps))
    return ResampledModel(model, values, tuple(np.concatenate(rows) for rows in zip(*blocks, strict=True))), warning


def _refit(step: Step, start: np.ndarray, points: pd.DataFrame, counts: np.ndarray) -> np.ndarray:
    """Fits a step to each row of counts [draws, points], from the fit to all points, `start` [1, parameters]."""
    starts = np.repeat(start, len(counts), axis=0)
    weights = counts * _weights(step, points)
    return refit_from_starts(step.law, _objective(step), starts, points, _response(step, points), weights)[0]


def _response(step: Step, points: pd.DataFrame) -> np.ndarray:
    """The values that a step is fitted to, [points], at least MIN_RESPONSE: less than any measurement resolves."""
    return np.maximum(points[step.response].to_numpy(float), MIN_RESPONSE)


def _objective(step: Step) -> Objective:
    """Squared error for shares, squared log error for bits per byte and loss."""
    return mse if step.response in ("accuracy", "error") else mse_log


def _weights(step: Step, points: Mapping[str, pd.Series] | pd.DataFrame) -> np.ndarray:
    """Weights of the points in the fit of a step, [points]; an error is weighted as its accuracy."""
    name = "accuracy" if step.response == "error" else step.response
    return np.asarray(points[f"{name}_weight"], float)
