"""The public tables that laws are tested on, each read from a local folder as one tidy table of runs. The back-test,
the coverage study and the replications read them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from analysis.errors import TableError

DATA_FOLDER = Path("../shared/data")
_NAMES = {"N": "params", "D": "tokens", "U": "unique_tokens"}


@dataclass(frozen=True)
class PublicTable:
    """A set of runs from one study.

    Attributes:
      file: path below the folder of public tables.
      source: the publication.
      select: keeps the rows of the set, and makes its column `loss`.
    """

    name: str
    file: str
    source: str
    select: Callable[[pd.DataFrame], pd.DataFrame]

    def read(self, data: Path) -> pd.DataFrame:
        """Columns params, tokens, flops, loss (nats per token), and the study's own. data: the folder of public tables.
        Raises TableError if the file is missing."""
        path = data / self.file
        if not path.exists():
            raise TableError(
                f"{path}: no such file; --data names the folder of public tables; `scaling replicate --fetch` fills one"
            )
        table = self.select(pd.read_csv(path).rename(columns=_NAMES)).reset_index(drop=True)
        table = table.astype(dict.fromkeys(("params", "tokens", "loss"), float))
        flops = table["flops"] if "flops" in table else 6 * table["params"] * table["tokens"]
        return table.assign(flops=flops.astype(float))


def _select_equal(**values: str) -> Callable[[pd.DataFrame], pd.DataFrame]:
    """A function that keeps the rows whose columns have these values."""

    def select(table: pd.DataFrame) -> pd.DataFrame:
        for column, value in values.items():
            table = table[table[column] == value]
        return table

    return select


def _gadre(dataset: str) -> PublicTable:
    def select(table: pd.DataFrame) -> pd.DataFrame:
        return table[table["dataset_name"] == dataset].assign(loss=lambda t: t["loss_c4_val"])

    return PublicTable(f"gadre_{dataset}", "gadre_overtrain/gadre_104_models.csv", "Gadre et al. 2024", select)


_PORIAN = {
    "kaplan": {"hparams": "base", "warmup": "long", "decay": "kaplan", "param_count": "kaplan", "val": "train"},
    "head": {"hparams": "base", "warmup": "long", "decay": "kaplan", "param_count": "standard", "val": "val"},
    "warmup": {"hparams": "base", "warmup": "short", "decay": "kaplan", "param_count": "standard", "val": "val"},
    "decay": {"hparams": "base", "warmup": "short", "decay": "chinchilla", "param_count": "standard", "val": "val"},
    "tuned": {"hparams": "tuned", "warmup": "short", "decay": "const", "param_count": "standard", "val": "val"},
}


def _porian(corpus: str, step: str) -> PublicTable:
    file = f"porian/summary_df{'' if corpus == 'rw' else f'_{corpus}'}_points.csv"
    return PublicTable(f"porian_{corpus}_{step}", file, "Porian et al. 2024", _select_equal(**_PORIAN[step]))


def _steplaw(table: pd.DataFrame) -> pd.DataFrame:
    """The run of the best learning rate and batch size of each number of parameters and tokens."""
    table = table.assign(loss=table["smooth loss"])
    return table.loc[table.groupby(["params", "tokens"])["loss"].idxmin()]


PUBLIC_TABLES: Mapping[str, PublicTable] = {
    table.name: table
    for table in (
        PublicTable(
            "chinchilla_240",
            "chinchilla_epoch/chinchilla_nd_loss.csv",
            "Besiroglu et al. 2024, their 240 points",
            lambda table: table[table["used_in_epoch_fit"]],
        ),
        PublicTable(
            "chinchilla_245",
            "chinchilla_epoch/chinchilla_nd_loss.csv",
            "Besiroglu et al. 2024, every point",
            lambda table: table,
        ),
        *map(_gadre, ("c4_original", "rpj", "rw_original")),
        PublicTable(
            "datablations_1epoch",
            "datablations/datablations_182.csv",
            "Muennighoff et al. 2023, single-epoch runs",
            lambda table: table[table["tokens"] <= table["unique_tokens"]],
        ),
        *(_porian(corpus, step) for corpus in ("rw", "owt2") for step in _PORIAN),
        PublicTable("steplaw_dense", "steplaw/data/dense_lr_bs_loss.csv", "StepLaw 2025, best run a cell", _steplaw),
    )
}


def read_all(data: Path) -> Iterator[tuple[str, pd.DataFrame]]:
    """(name, table) of every public table."""
    return ((name, table.read(data)) for name, table in PUBLIC_TABLES.items())
