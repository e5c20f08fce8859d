"""What a good scaling study reports, filled in from what a folder holds. Why each item matters: docs/checklist.md.

An answer is yes, no or unknown, with its evidence in a few words. `no` is no verdict on the law: it says what a reader
has to take on trust. The bounds are ours, each beside the item that uses it.

Not in the design's list of modules: what is asked of a study is a matter of its own, apart from how a page shows it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from analysis.forecasting.backtest import CHOSEN
from analysis.plots.style import compact, scientific
from analysis.report.evidence import Evidence
from analysis.report.tolerate import Tolerant
from analysis.tables import table_checks

Answer = Literal["yes", "no", "unknown"]
MIN_COMPUTE_SPAN = 30.0
"""Least range of training compute: an exponent from less rests on little more than its end points."""
MIN_EXTRAPOLATION = 2.0
"""Least compute of a held-out run over the largest fitted, for its forecast to be called an extrapolation."""
MIN_HORIZONS = 3
"""Least number of horizons a size, and of sizes, for N and D to have exponents of their own."""
MIN_SEEDS = 3
"""Least number of seeds of one cell, for the noise of a run to be measured."""
DECAYING_SCHEDULES = ("wsd", "cosine", "linear")


@dataclass(frozen=True)
class Item:
    """One thing that a scaling study should report. key: its heading in docs/checklist.md."""

    key: str
    requirement: str
    answer: Answer
    evidence: str


def fill_checklist(found: Evidence, attempt: Tolerant | None = None) -> list[Item]:
    """Every item with its answer, in the order of docs/checklist.md.

    attempt: is told of an item that cannot be judged, which is unknown then.
    """
    attempt, asked = attempt or Tolerant(), []
    for key, what, judge in CHECKLIST:
        unjudged: tuple[Answer, str] = ("unknown", "")
        answer, said = attempt(f"checklist {key}", partial(judge, found), unjudged)
        asked.append(Item(key, what, answer, said or attempt.missing.get(f"checklist {key}", "")))
    return asked


def _counting(found: Evidence) -> tuple[Answer, str]:
    column = found.fit.document["params_column"]
    if column == "params":
        return "unknown", "the table calls its sizes `params` and does not say what they count"
    others = sorted(str(name) for name in found.table if str(name).startswith("params_") and name != column)
    return "yes", f"N is {column}" + (f"; the table also has {', '.join(others)}" if others else "")


def _flops(found: Evidence) -> tuple[Answer, str]:
    if "flops" not in found.table:
        return "no", "the table has none: 6 N D is taken"
    points = found.all_points
    ratio = points["flops"] / (points["params"] * points["tokens"])
    return "yes", f"counted for each run: {ratio.min():.2f} to {ratio.max():.2f} times N D"


def _range(found: Evidence) -> tuple[Answer, str]:
    flops = found.fit.points["flops"]
    spans = [
        f"{v.max() / v.min():.3g}x in {n}"
        for n, v in (("N", found.fit.points["params"]), ("D", found.fit.points["tokens"]))
    ]
    span = flops.max() / flops.min()
    said = f"{scientific(flops.min())} to {scientific(flops.max())} FLOPs: {span:.3g}x ({', '.join(spans)})"
    return ("yes" if span >= MIN_COMPUTE_SPAN else "no"), said


def _apart(found: Evidence) -> tuple[Answer, str]:
    points = found.fit.points
    horizons = int(points.groupby("params")["tokens"].nunique().max())
    sizes = int(points.groupby("tokens")["params"].nunique().max())
    ratio = points["tokens"] / points["params"]
    said = f"up to {horizons} horizons a size, {sizes} sizes a horizon"
    said += f"; {ratio.min():.3g} to {ratio.max():.3g} tokens a parameter"
    isoflop = points["params"].nunique() >= MIN_HORIZONS and ratio.max() / ratio.min() >= 10
    return ("yes" if min(horizons, sizes) >= MIN_HORIZONS or isoflop else "no"), said


def _held_out(found: Evidence) -> tuple[Answer, str]:
    fit = found.fit
    if fit.held_out.empty:
        return "no", "no run was held out"
    rows = fit.forecast(fit.held_out)
    inside = sum(row["low"] <= row["measured"] <= row["high"] for row in rows)
    worst = max(abs(row["relative_error"]) for row in rows)
    return (
        "yes",
        f"{len(rows)} held out, {inside} inside the {fit.document['level']:.0%} interval; error at most {worst:.2%}",
    )


def _beyond(found: Evidence) -> tuple[Answer, str]:
    if found.fit.held_out.empty:
        return "no", "no run was held out"
    factor = found.fit.held_out["flops"].max() / found.fit.points["flops"].max()
    return (
        "yes" if factor >= MIN_EXTRAPOLATION else "no"
    ), f"the largest held-out run has {factor:.3g}x the compute of the largest fitted"


def _intervals(found: Evidence) -> tuple[Answer, str]:
    d = found.fit.document
    return (
        "yes",
        f"{d['level']:.0%} by {d['uncertainty']}; of forecasts, widened by the errors of hold-outs and run noise",
    )


def _backtest(found: Evidence) -> tuple[Answer, str]:
    if found.backtest.empty:
        return "no", found.missing.get("backtest", "none was made")
    rows = found.backtest[found.backtest["law"] == CHOSEN]
    error = (rows["predicted"] / rows["measured"] - 1).abs().groupby(rows["factor"]).mean()
    inside = ((rows["low_90"] <= rows["measured"]) & (rows["measured"] <= rows["high_90"])).mean()
    said = ", ".join(f"{value:.1%} at {factor:g}x" for factor, value in error.items())
    return "yes", f"mean error of the chosen law {said}; nominal 90% intervals held {inside:.0%}"


def _form(found: Evidence) -> tuple[Answer, str]:
    choice = found.fit.document["choice"]
    if choice is None or choice["drift"] is None:
        return "no", "too few points to hold any out: the form is taken for granted"
    how = "chosen" if found.fit.document["chosen"] else "named by hand; the best would be"
    return "yes", f"{how} {choice['chosen']}, of {len(choice['candidates'])} scored by hold-out in compute"


def _optimum(found: Evidence) -> tuple[Answer, str]:
    d = found.fit.document
    bounds = f"; at its bound: {', '.join(d['bounds_hit'])}" if d["bounds_hit"] else ""
    good = 2 * d["reached"] >= d["starts"] and not d["bounds_hit"]
    return ("yes" if good else "no"), f"{d['reached']} of {d['starts']} starts end at the same optimum{bounds}"


def _otherwise(found: Evidence) -> tuple[Answer, str]:
    rows = found.fit.document.get("sensitivity") or []
    if len(rows) < 2:
        return "no", "the fit has no panel; `scaling fit` makes one"
    values = [row["exponent_a"] for row in rows]
    return (
        "yes",
        f"{len(rows) - 1} other ways: the optimum's exponent lies between {min(values):.2f} and {max(values):.2f}",
    )


def _rates(found: Evidence) -> tuple[Answer, str]:
    how = found.fit.document.get("learning_rates", {})
    if not how or set(how) == {"not stated"}:
        return "unknown", "the table does not say how they were found"
    tuned = all(name.startswith(("scan", "rule")) for name in how)
    return ("yes" if tuned else "no"), "; ".join(f"{count} runs: {name}" for name, count in how.items())


def _inside(found: Evidence) -> tuple[Answer, str]:
    at_bound = [run for run, words in found.flags_by_run.items() if "lr_at_bound" in words]
    if at_bound:
        return "no", f"the best of its scan is the lowest or highest tried: {table_checks.shorten(at_bound)}"
    if found.rate_law is None:
        return "unknown", "no scans are beside this table; name them with --scans"
    edges = [scan for scan in found.rate_law.scans if scan.at_bound]
    said = f"{len(found.rate_law.scans) - len(edges)} of {len(found.rate_law.scans)} scans have theirs inside"
    return ("no" if edges else "yes"), said


def _schedule(found: Evidence) -> tuple[Answer, str]:
    if "schedule" not in found.done_rows:
        return "unknown", "the table has no column schedule"
    kinds = found.done_rows["schedule"].value_counts()
    early = [run for run, words in found.flags_by_run.items() if "undertrained" in words]
    said = ", ".join(f"{count} {name}" for name, count in kinds.items())
    if early:
        return "no", f"{said}; undertrained: {table_checks.shorten(early)}"
    return ("yes" if set(kinds.index) <= set(DECAYING_SCHEDULES) else "no"), f"{said}, each ending with its run"


def _missing(found: Evidence, *columns: str) -> str:
    """Why these columns tell nothing; "" where they do."""
    if absent := [name for name in columns if name not in found.done_rows]:
        return f"the table has no column {absent[0]}"
    return "" if found.done_rows[list(columns)].notna().all(axis=1).any() else "no run that is done has them"


def _seeds(found: Evidence) -> tuple[Answer, str]:
    size = "params_matmul" if "params_matmul" in found.done_rows else "params"
    if missing := _missing(found, "seed", size, "tokens"):
        return "unknown", missing
    most = int(found.done_rows.groupby([size, "tokens"])["seed"].nunique().max())
    spread = 100 * float(np.std(found.fit.residuals))
    return (
        "yes" if most >= MIN_SEEDS else "no"
    ), f"{most} a cell at most; the noise of a run is told by residuals: {spread:.2g}%"


def _left_out(found: Evidence) -> tuple[Answer, str]:
    d, flagged = found.fit.document, found.fit.document["flagged"]
    used = f"{len(flagged)} flagged ones used" if flagged else "no flagged one used"
    return "yes", f"{d['dropped']} failed or diverged left out, {used}; every run is in the table below"


def _bytes(found: Evidence) -> tuple[Answer, str]:
    if "bits_per_byte" not in found.done_rows or found.done_rows["bits_per_byte"].isna().any():
        return "no", "the table has no bits per byte for every run: losses depend on the vocabulary"
    values = found.done_rows["bits_per_byte"]
    return "yes", f"{values.min():.3f} to {values.max():.3f} bits per byte"


def _repeated(found: Evidence) -> tuple[Answer, str]:
    if missing := _missing(found, "unique_tokens", "tokens"):
        return "unknown", missing
    epochs = (found.done_rows["tokens"] / found.done_rows["unique_tokens"]).max()
    return "yes", "no token is seen twice" if epochs <= 1.001 else f"up to {epochs:.3g} epochs"


def _data(found: Evidence) -> tuple[Answer, str]:
    corpora = found.config_values("data", "corpus")
    if not corpora:
        return "unknown", "no config of a run is beside the table"
    prints, words = (found.config_values("data", name) for name in ("fingerprint", "vocabulary"))
    held = found.config_values("measure", "validation_tokens")
    said = f"{', '.join(corpora)}, {', '.join(words)} vocabulary, fingerprint {', '.join(prints)}"
    return "yes", said + (f"; loss on {compact(float(held[0]))} validation tokens" if len(held) == 1 else "")


def _downstream(found: Evidence) -> tuple[Answer, str]:
    if not found.studies:
        return "no", found.missing.get("downstream", "none")
    return "yes", ", ".join(f"{study.task}: {study.verdict}" for study in found.studies)


def _code(found: Evidence) -> tuple[Answer, str]:
    commits, versions = found.environment_values("commit"), found.environment_values("packages", "jax")
    if not commits:
        return "unknown", "no environment of a run names a commit"
    said = f"commit {', '.join(c[:12] for c in commits[:3])}; jax {', '.join(versions)}"
    return ("yes" if len(commits) == 1 else "no"), said + (
        "" if len(commits) == 1 else f"; {len(commits)} commits mixed"
    )


def _hardware(found: Evidence) -> tuple[Answer, str]:
    devices = [d for d in found.environment_values("devices") if d]
    if not devices:
        return "unknown", "no environment of a run names its devices"
    kernels = found.environment_values("attention_kernel")
    return "yes", f"{table_checks.shorten(devices)}; attention by {', '.join(kernels) or 'an unnamed kernel'}"


def _table(found: Evidence) -> tuple[Answer, str]:
    digest = found.fit.document["table"]["sha256"][:12]
    if found.table_unchanged is None:
        return "no", f"the table {digest} is not beside the fit"
    if not found.table_unchanged:
        return "no", f"the table has changed since the fit, which names {digest}"
    plan = f"; plan {found.plan_hash[:12]}" if found.plan_hash else "; no frozen plan"
    return "yes", f"{len(found.table)} rows, sha256 {digest}{plan}"


CHECKLIST: tuple[tuple[str, str, Callable[[Evidence], tuple[Answer, str]]], ...] = (
    ("counting", "The counting of parameters is named", _counting),
    ("flops", "Training compute is counted, not taken as 6 N D", _flops),
    ("range", f"The runs span {MIN_COMPUTE_SPAN:g}x of compute or more", _range),
    ("apart", "Parameters and tokens vary apart from one another", _apart),
    ("rates", "Learning rates come from a rule or a scan at every size", _rates),
    ("inside", "The best learning rates lie inside their scans", _inside),
    ("schedule", "Every schedule ends with its run", _schedule),
    ("repeated", "It is said whether data repeat", _repeated),
    ("data", "Corpus, vocabulary and validation set are named", _data),
    ("bytes", "Loss is given per byte of text", _bytes),
    ("seeds", f"The noise of a run is measured with {MIN_SEEDS} seeds", _seeds),
    ("left-out", "Points left out are counted, and said why", _left_out),
    ("form", "The form of the law is chosen by hold-out in compute", _form),
    ("optimum", "The fit finds its optimum from many starts", _optimum),
    ("intervals", "Intervals are given, and how they are made", _intervals),
    ("otherwise", "It is shown how the law moves when fitted otherwise", _otherwise),
    ("backtest", "Forecasts from smaller runs are scored on larger ones", _backtest),
    ("held-out", "A run that the fit did not see is forecast", _held_out),
    ("beyond", f"That run lies {MIN_EXTRAPOLATION:g}x or more beyond the fit", _beyond),
    ("downstream", "Something beside the loss is measured", _downstream),
    ("code", "One version of the code made all runs, and is named", _code),
    ("hardware", "The hardware is named", _hardware),
    ("table", "The table behind the law is kept, unchanged", _table),
)
