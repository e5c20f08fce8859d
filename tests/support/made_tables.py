"""Writes generated tables with the file names and columns of the public ones, so that their readers and studies are
also tested where the public tables are missing. They hold no row of the public tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from analysis.laws import accuracy, surface
from analysis.replicate import datablations, gadre, porian

CHINCHILLA = {"E": 1.8, "A": 470.0, "B": 2000.0, "alpha": 0.35, "beta": 0.37}
OVER_TRAINING = {"E": 1.4, "a": 160.0, "b": 350.0, "eta": 0.26}
ERROR = {"eps": 0.86, "k": 2.2, "gamma": 0.72}


def write_csv(folder: Path, file: str, table: pd.DataFrame) -> None:
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(folder / file, index=False)


def noise_factors(size: int, spread: float, seed: int = 0) -> np.ndarray:
    return np.exp(np.random.default_rng(seed).normal(0, spread, size))


def write_chinchilla(folder: Path) -> None:
    """64 runs of a Chinchilla law; the five of the highest loss are left out of the second set of rows."""
    n, d = (grid.ravel() for grid in np.meshgrid(np.geomspace(5e7, 1e10, 8), np.geomspace(5e8, 3e11, 8)))
    p = CHINCHILLA
    loss = (p["E"] + p["A"] / n ** p["alpha"] + p["B"] / d ** p["beta"]) * noise_factors(len(n), 3e-3)
    kept = loss < np.sort(loss)[-5]
    table = pd.DataFrame({"N": n, "C": 6 * n * d, "D": d, "loss": loss, "used_in_epoch_fit": kept})
    write_csv(folder, "chinchilla_epoch/chinchilla_nd_loss.csv", table)


def write_gadre(folder: Path) -> None:
    """Three training sets, six sizes, four ratios of tokens to parameters: losses and errors exactly on their laws."""
    parts = []
    for shift, name in enumerate(("c4_original", "rpj", "rw_original")):
        n, ratio = (grid.ravel() for grid in np.meshgrid(np.array(gadre.SIZES, float), (20.0, 80.0, 320.0, 640.0)))
        table = pd.DataFrame({"dataset_name": name, "N": n, "D": n * ratio, "tok_mult": ratio})
        law = {**OVER_TRAINING, "E": OVER_TRAINING["E"] + 0.1 * shift}
        loss = np.asarray(surface.over_training(law, {"params": n, "tokens": n * ratio}))
        error = np.asarray(accuracy.exponential_error(ERROR, {"loss": loss}))
        names = [f"{name}-{i}" for i in range(len(n))]
        parts.append(table.assign(name=names, flops=6 * n * n * ratio, loss_c4_val=loss, err_avg_subset=error))
    write_csv(folder, "gadre_overtrain/gadre_104_models.csv", pd.concat(parts))


def write_porian(folder: Path, shift: float = 0.0) -> None:
    """Parabolas in log N about N* = c C^a, where a is the exponent of each step and corpus plus `shift`."""
    budgets = 1.25e16 * 2.0 ** np.arange(12)
    for corpus, file, _, exponents in porian.CORPORA:
        parts = []
        for step, ((_, key), exponent) in enumerate(zip(porian.STEPS, exponents, strict=True)):
            c, factor = (grid.ravel() for grid in np.meshgrid(budgets, np.geomspace(1 / 4, 4, 9), indexing="ij"))
            without_head = key[3] == "kaplan"
            n = (1.2e6 if without_head else 2.4e7) * (c / budgets[0]) ** (exponent + shift) * factor
            loss = 1.8 - 0.02 * step + 2.5 * (c / budgets[0]) ** -0.1 + 0.12 * np.log(factor) ** 2
            table = pd.DataFrame({"flops": c, "N": n, "D": c / (6 * n), "loss": loss})
            settings = dict(zip(("hparams", "warmup", "decay", "param_count"), key, strict=True))
            where = "rw" if corpus == "RefinedWeb" else "owt2"
            parts.append(table.assign(**settings, dataset=where, val="train" if without_head else "val"))
        write_csv(folder, f"porian/{file}", pd.concat(parts))


def write_datablations(folder: Path) -> None:
    """Runs of one to 60 epochs by the law of repeated data, with the parameters of the study's better minimum."""
    n, u, epochs = (
        grid.ravel() for grid in np.meshgrid(np.geomspace(1e8, 5e9, 5), (1e9, 4e9, 1.6e10), (1, 2, 4, 8, 16, 32, 60))
    )
    columns = {"params": n, "tokens": u * epochs, "unique_tokens": u}
    loss = np.asarray(datablations.repeats_law(datablations.LOWER_MINIMUM, columns)) * noise_factors(len(n), 1e-3)
    table = pd.DataFrame({"name": [f"r{i}" for i in range(len(n))], "N": n, "D": u * epochs, "U": u, "loss": loss})
    write_csv(folder, "datablations/datablations_182.csv", table)


def write_steplaw(folder: Path) -> None:
    """Nine pairs (N, D), each at 16 pairs of learning rate and batch size: the smoothed loss rises from the best
    pair."""
    n, d, rate, batch = (
        grid.ravel()
        for grid in np.meshgrid((2e8, 4e8, 8e8), (5e9, 2e10, 8e10), (5e-4, 1e-3, 2e-3, 4e-3), (64, 128, 256, 512))
    )
    floor = 1.7 + 400 / n**0.34 + 1500 / d**0.36
    away = np.log(rate / 1.1e-3) ** 2 + np.log(batch / 200) ** 2
    smooth = floor * (1 + 0.02 * away)
    columns = {
        "lr": rate,
        "bs": batch,
        "loss": smooth * noise_factors(len(n), 0.01),
        "smooth loss": smooth,
        "D": d,
        "N": n,
    }
    write_csv(folder, "steplaw/data/dense_lr_bs_loss.csv", pd.DataFrame(columns))


def write_tables(folder: Path) -> Path:
    """Writes all of them into a folder laid out like that of the public tables, and returns it."""
    for write in (write_chinchilla, write_gadre, write_porian, write_datablations, write_steplaw):
        write(folder)
    return folder
