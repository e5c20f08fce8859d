"""Results tables of simulated sweeps with downstream tasks whose true accuracy is known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

CHANCE = 0.25
Truth = Callable[[np.ndarray, np.ndarray], np.ndarray]


def true_bits_per_byte(params: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """True bits per byte of the right answer: 2.9 to 1.5 over the cells of grid_of_cells."""
    return 0.8 + 0.7 * (1e4 / params) ** 0.35 + 1.4 * (4.6e5 / tokens) ** 0.4


def rising_accuracy(params: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """True accuracy of a task that rises: a sigmoid in true_bits_per_byte, from chance to the ceiling."""
    return CHANCE + (1 - CHANCE) / (1 + np.exp(5 * (true_bits_per_byte(params, tokens) - 1.9)))


def flat_accuracy(params: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """True accuracy of a task that no model can do: chance."""
    return np.full(len(params), CHANCE)


def grid_of_cells(sizes: int = 6, horizons: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Params and tokens of a rectangular sweep, [sizes * horizons] each."""
    params, tokens = np.meshgrid(np.geomspace(1e4, 2.2e5, sizes), np.geomspace(4.6e5, 3.7e6, horizons), indexing="ij")
    return params.ravel(), tokens.ravel()


def make_task_table(
    tasks: dict[str, Truth],
    seed: int | None = None,
    *,
    questions: int = 1000,
    cells: tuple[np.ndarray, np.ndarray] | None = None,
    noise: float = 0.005,
    chance: float = CHANCE,
) -> pd.DataFrame:
    """A results table of one finished run a cell, with the columns of some tasks.

    Args:
      tasks: name -> true accuracy as a function of params and tokens.
      seed: of the answers and of the noise of loss and bits per byte; without a seed, every column is exact.
      questions: number of questions of a task.
      cells: params and tokens; grid_of_cells unless given.
      noise: standard deviation of log loss and of log bits per byte.
      chance: chance level of every task.
    """
    params, tokens = cells or grid_of_cells()
    generator = np.random.default_rng(seed)

    def jitter() -> np.ndarray:
        return np.exp(generator.normal(0, noise, len(params))) if seed is not None else np.ones(len(params))

    columns = {
        "run_id": [f"r{i:03}" for i in range(len(params))],
        "status": "done",
        "params_matmul": params,
        "tokens": tokens,
        "flops": 6 * params * tokens,
        "loss": 0.7 * true_bits_per_byte(params, tokens) * jitter(),
        "branch_of": "",
    }
    for name, truth in tasks.items():
        share = truth(params, tokens)
        if seed is not None:
            share = generator.binomial(questions, share) / questions
        columns |= {
            f"{name}/accuracy": share,
            f"{name}/accuracy_stderr": np.sqrt(share * (1 - share) / questions),
            f"{name}/chance": chance,
            f"{name}/ceiling": 1.0,
            f"{name}/bits_per_byte": true_bits_per_byte(params, tokens) * jitter(),
        }
    return pd.DataFrame(columns)
