"""What fit.json holds, and how it is read and checked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

from analysis import files, laws
from analysis.errors import TableError
from analysis.type_checks import describe_value

REMEDY = "fit the table again with `scaling fit TABLE`"


class FitObjective(TypedDict):
    """The objective of a fit, and its value at the optimum. delta: of the Huber loss, else null."""

    name: str
    delta: float | None
    value: float


class FitOrigin(TypedDict):
    """Where the points come from: see `analysis.api.load_with_origin`."""

    path: str
    sha256: str
    columns: NotRequired[dict[str, str]]
    where: NotRequired[str]


class MemberDraws(TypedDict):
    """Bootstrap draws of a law, one list of parameters each."""

    law: str
    draws: list[list[float]]


class Predictive(TypedDict):
    """The facts of a PredictiveDistribution."""

    members: list[MemberDraws]
    noise: list[float]
    chances: list[float]
    drift: float | None
    limit: float | None


class FitFile(TypedDict):
    """The content of fit.json; `saved_fit.build_saved_fit` makes it, with further keys that only people read."""

    schema: Literal[1]
    law: str
    formula: str
    source: str
    objective: FitObjective
    parameters: dict[str, float]
    fixed: list[str]
    warnings: list[str]
    n: int
    chosen: bool
    weight_power: float
    exponent_a: float | None
    G: float | None
    standard_errors: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    profile_intervals: NotRequired[dict[str, tuple[float | None, float | None]]]
    uncertainty: str
    level: float
    seed: int
    params_column: str
    units: dict[str, str]
    holdout: str
    dropped: int
    flagged: dict[str, str]
    learning_rates: NotRequired[dict[str, int]]
    table: FitOrigin
    points: list[dict[str, str | float | None]]
    held_out: list[dict[str, str | float | None]]
    draws: list[list[float]]
    choice: dict[str, Any] | None
    predictive: Predictive
    sensitivity: NotRequired[list[dict[str, Any]]]


def read_fit_file(path: Path) -> dict[str, Any]:
    """The content of fit.json. Raises TableError that names the file and the entry when it is absent or damaged."""
    if not path.exists():
        raise TableError(f"{path}: no such file; `scaling fit TABLE` writes it")
    document = files.read_json(path, FitFile, remedy=REMEDY)
    try:
        json.dumps(document, allow_nan=False)  # an entry that only people read may hold 1e999, which is infinite
        misfit = next(_find_misfits(document), "")
    except KeyError as error:
        misfit = str(error.args[0])
    except ValueError as error:
        misfit = f"a number is infinite ({error})"
    if misfit:
        raise TableError(f"{path}: {misfit}; {REMEDY}")
    return document


def _find_misfits(document: dict[str, Any]) -> Iterator[str]:
    """What does not agree in a document whose types are right, as a sentence each. Raises KeyError on an unknown
    law."""
    law = laws.get_law(document["law"])
    if set(document["parameters"]) != set(law.parameters):
        yield f"parameters = {[*document['parameters']]}: must be those of {law.name}, {', '.join(law.parameters)}"
    if not 0 < document["level"] < 1:
        yield f"level = {document['level']}: must be between 0 and 1"
    if document["seed"] < 0:
        yield f"seed = {document['seed']}: must be 0 or more"
    names = [*law.parameters] + ["exponent_a"] * (document["exponent_a"] is not None)
    for key in ("standard_errors", "intervals"):
        if lacking := [name for name in names if name not in document[key]]:
            yield f"{key} lacks {', '.join(lacking)}"
    if law.response not in document["units"]:
        yield f"units lacks {law.response}"
    if not document["points"]:
        yield "points = []: must be the fitted points"
    for key in ("points", "held_out"):
        for number, point in enumerate(document[key]):
            for name in (*law.columns, law.response):
                if isinstance(value := point.get(name), str | None) or not value > 0:
                    yield f"{key}[{number}].{name} = {describe_value(value)}: must be a number above zero"
    yield from _find_wrong_draws("draws", law, document["draws"])
    predictive = document["predictive"]
    if not predictive["members"]:
        yield "predictive.members = []: must have a law"
    for number, member in enumerate(predictive["members"]):
        key = f"predictive.members[{number}].draws"
        yield from _find_wrong_draws(key, laws.get_law(member["law"]), member["draws"])
    chances = predictive["chances"]
    if len(chances) != len(predictive["noise"]) or min(chances, default=-1.0) < 0 or not sum(chances) > 0:
        yield "predictive.chances: must be as many numbers as predictive.noise, 0 or more, not all 0"


def _find_wrong_draws(key: str, law: laws.Law, draws: list[list[float]]) -> Iterator[str]:
    if not draws:
        yield f"{key} = []: must have at least one draw"
    for number, draw in enumerate(draws):
        if len(draw) != len(law.parameters):
            yield f"{key}[{number}] has {len(draw)} numbers: must have {len(law.parameters)}, one a parameter"
