"""A checklist of what a good scaling study reports, answered from the files of a folder. docs/checklist.md says why
each item matters.

An answer is yes, no or unknown, with its evidence in a few words. `no` does not mean that the law is wrong: it names
what a reader cannot check. The bounds are ours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from analysis.forecasting.backtest import CHOSEN
from analysis.plots.style import format_count, format_scientific
from analysis.report.evidence import Evidence
from analysis.report.tolerate import Tolerant
from analysis.tables import table_checks

Answer = Literal["yes", "no", "unknown"]
MIN_COMPUTE_SPAN = 30.0
"""Largest over smallest training compute. Below this an exponent depends on little more than its end points."""
MIN_EXTRAPOLATION = 2.0
"""Compute of a held-out run over that of the largest fitted run, for its forecast to count as an extrapolation."""
MIN_HORIZONS = 3
"""Distinct tokens for one size, and sizes for one number of tokens, for N and D to have exponents of their own."""
MIN_SEEDS = 3
"""Seeds of one cell, for the noise of a run to be measured."""
DECAYING_SCHEDULES = ("wsd", "cosine", "linear")
"""Schedules whose learning rate has decayed when the run ends."""


@dataclass(frozen=True)
class Item:
    """One thing that a scaling study should report. key: its heading in docs/checklist.md."""

    key: str
    requirement: str
    answer: Answer
    evidence: str


def fill_checklist(evidence: Evidence, tolerant: Tolerant | None = None) -> list[Item]:
    """Every item with its answer, in the order of docs/checklist.md.

    tolerant: records the items that cannot be judged; their answer is unknown.
    """
    tolerant, items = tolerant or Tolerant(), []
    for key, requirement, judge in CHECKLIST:
        unknown: tuple[Answer, str] = ("unknown", "")
        answer, text = tolerant(f"checklist {key}", partial(judge, evidence), unknown)
        items.append(Item(key, requirement, answer, text or tolerant.missing.get(f"checklist {key}", "")))
    return items


def _counting(evidence: Evidence) -> tuple[Answer, str]:
    column = evidence.fit.document["params_column"]
    if column == "params":
        return "unknown", "the table has a column `params` and does not say what it counts"
    others = sorted(str(name) for name in evidence.table if str(name).startswith("params_") and name != column)
    return "yes", f"N is {column}" + (f"; the table also has {', '.join(others)}" if others else "")


def _flops(evidence: Evidence) -> tuple[Answer, str]:
    if "flops" not in evidence.table:
        return "no", "the table has no column flops: 6 N D is used"
    points = evidence.all_points
    ratio = points["flops"] / (points["params"] * points["tokens"])
    return "yes", f"counted for each run: {ratio.min():.2f} to {ratio.max():.2f} times N D"


def _range(evidence: Evidence) -> tuple[Answer, str]:
    flops = evidence.fit.points["flops"]
    spans = [
        f"{v.max() / v.min():.3g}x in {n}"
        for n, v in (("N", evidence.fit.points["params"]), ("D", evidence.fit.points["tokens"]))
    ]
    span = flops.max() / flops.min()
    text = (
        f"{format_scientific(flops.min())} to {format_scientific(flops.max())} FLOPs: {span:.3g}x ({', '.join(spans)})"
    )
    return ("yes" if span >= MIN_COMPUTE_SPAN else "no"), text


def _separate(evidence: Evidence) -> tuple[Answer, str]:
    points = evidence.fit.points
    horizons = int(points.groupby("params")["tokens"].nunique().max())
    sizes = int(points.groupby("tokens")["params"].nunique().max())
    ratio = points["tokens"] / points["params"]
    text = f"up to {horizons} horizons a size, {sizes} sizes a horizon"
    text += f"; {ratio.min():.3g} to {ratio.max():.3g} tokens a parameter"
    isoflop = points["params"].nunique() >= MIN_HORIZONS and ratio.max() / ratio.min() >= 10
    return ("yes" if min(horizons, sizes) >= MIN_HORIZONS or isoflop else "no"), text


def _held_out(evidence: Evidence) -> tuple[Answer, str]:
    fit = evidence.fit
    if fit.held_out.empty:
        return "no", "no run was held out"
    rows = fit.forecast(fit.held_out)
    inside = sum(row["low"] <= row["measured"] <= row["high"] for row in rows)
    worst = max(abs(row["relative_error"]) for row in rows)
    return (
        "yes",
        f"{len(rows)} held out, {inside} inside the {fit.document['level']:.0%} interval; error at most {worst:.2%}",
    )


def _beyond(evidence: Evidence) -> tuple[Answer, str]:
    if evidence.fit.held_out.empty:
        return "no", "no run was held out"
    factor = evidence.fit.held_out["flops"].max() / evidence.fit.points["flops"].max()
    return (
        "yes" if factor >= MIN_EXTRAPOLATION else "no"
    ), f"the largest held-out run has {factor:.3g}x the compute of the largest fitted"


def _intervals(evidence: Evidence) -> tuple[Answer, str]:
    d = evidence.fit.document
    return (
        "yes",
        f"{d['level']:.0%} by {d['uncertainty']}; of forecasts, widened by the errors of hold-outs and run noise",
    )


def _backtest(evidence: Evidence) -> tuple[Answer, str]:
    if evidence.backtest.empty:
        return "no", evidence.missing.get("backtest", "none was made")
    rows = evidence.backtest[evidence.backtest["law"] == CHOSEN]
    error = (rows["predicted"] / rows["measured"] - 1).abs().groupby(rows["factor"]).mean()
    inside = ((rows["low_90"] <= rows["measured"]) & (rows["measured"] <= rows["high_90"])).mean()
    text = ", ".join(f"{value:.1%} at {factor:g}x" for factor, value in error.items())
    return "yes", f"mean error of the chosen law {text}; nominal 90% intervals held {inside:.0%}"


def _form(evidence: Evidence) -> tuple[Answer, str]:
    choice = evidence.fit.document["choice"]
    if choice is None or choice["drift"] is None:
        return "no", "too few points to hold any out: the form of the law is assumed"
    how = "chosen" if evidence.fit.document["chosen"] else "named by hand; the best would be"
    return "yes", f"{how} {choice['chosen']}, of {len(choice['candidates'])} scored by hold-out in compute"


def _optimum(evidence: Evidence) -> tuple[Answer, str]:
    d = evidence.fit.document
    bounds = f"; at its bound: {', '.join(d['bounds_hit'])}" if d["bounds_hit"] else ""
    good = 2 * d["reached"] >= d["starts"] and not d["bounds_hit"]
    return ("yes" if good else "no"), f"{d['reached']} of {d['starts']} starts end at the same optimum{bounds}"


def _sensitivity(evidence: Evidence) -> tuple[Answer, str]:
    rows = evidence.fit.document.get("sensitivity") or []
    if len(rows) < 2:
        return "no", "the fit has no panel; `scaling fit` makes one"
    values = [row["exponent_a"] for row in rows]
    return (
        "yes",
        f"{len(rows) - 1} other ways: the optimum's exponent lies between {min(values):.2f} and {max(values):.2f}",
    )


def _rates(evidence: Evidence) -> tuple[Answer, str]:
    how = evidence.fit.document.get("learning_rates", {})
    if not how or set(how) == {"not stated"}:
        return "unknown", "the table has no column learning_rate_from, or it is empty"
    is_tuned = all(name.startswith(("scan", "rule")) for name in how)
    return ("yes" if is_tuned else "no"), "; ".join(f"{count} runs: {name}" for name, count in how.items())


def _inside(evidence: Evidence) -> tuple[Answer, str]:
    at_bound = [run for run, words in evidence.flags_by_run.items() if "lr_at_bound" in words]
    if at_bound:
        return "no", f"the best of its scan is the lowest or highest tried: {table_checks.shorten(at_bound)}"
    if evidence.rate_law is None:
        return "unknown", "this table has no scans beside it; name them with --scans"
    edges = [scan for scan in evidence.rate_law.scans if scan.at_bound]
    text = f"{len(evidence.rate_law.scans) - len(edges)} of {len(evidence.rate_law.scans)} scans have theirs inside"
    return ("no" if edges else "yes"), text


def _schedule(evidence: Evidence) -> tuple[Answer, str]:
    if "schedule" not in evidence.done_rows:
        return "unknown", "the table has no column schedule"
    kinds = evidence.done_rows["schedule"].value_counts()
    early = [run for run, words in evidence.flags_by_run.items() if "undertrained" in words]
    text = ", ".join(f"{count} {name}" for name, count in kinds.items())
    if early:
        return "no", f"{text}; undertrained: {table_checks.shorten(early)}"
    return ("yes" if set(kinds.index) <= set(DECAYING_SCHEDULES) else "no"), f"{text}, each ending with its run"


def _missing(evidence: Evidence, *columns: str) -> str:
    """Why these columns cannot be used; "" if they can."""
    if absent := [name for name in columns if name not in evidence.done_rows]:
        return f"the table has no column {absent[0]}"
    return "" if evidence.done_rows[list(columns)].notna().all(axis=1).any() else "no run that is done has them"


def _seeds(evidence: Evidence) -> tuple[Answer, str]:
    size = "params_matmul" if "params_matmul" in evidence.done_rows else "params"
    if missing := _missing(evidence, "seed", size, "tokens"):
        return "unknown", missing
    most = int(evidence.done_rows.groupby([size, "tokens"])["seed"].nunique().max())
    spread = 100 * float(np.std(evidence.fit.residuals))
    return (
        "yes" if most >= MIN_SEEDS else "no"
    ), f"{most} a cell at most; the noise of a run is estimated from residuals: {spread:.2g}%"


def _left_out(evidence: Evidence) -> tuple[Answer, str]:
    d, flagged = evidence.fit.document, evidence.fit.document["flagged"]
    used = f"{len(flagged)} flagged ones used" if flagged else "no flagged one used"
    return "yes", f"{d['dropped']} failed or diverged left out, {used}; every run is in the table below"


def _bytes(evidence: Evidence) -> tuple[Answer, str]:
    if "bits_per_byte" not in evidence.done_rows or evidence.done_rows["bits_per_byte"].isna().any():
        return "no", "not every run has bits per byte: losses depend on the vocabulary"
    values = evidence.done_rows["bits_per_byte"]
    return "yes", f"{values.min():.3f} to {values.max():.3f} bits per byte"


def _repeated(evidence: Evidence) -> tuple[Answer, str]:
    if missing := _missing(evidence, "unique_tokens", "tokens"):
        return "unknown", missing
    epochs = (evidence.done_rows["tokens"] / evidence.done_rows["unique_tokens"]).max()
    return "yes", "no token is seen twice" if epochs <= 1.001 else f"up to {epochs:.3g} epochs"


def _data(evidence: Evidence) -> tuple[Answer, str]:
    corpora = evidence.config_values("data", "corpus")
    if not corpora:
        return "unknown", "the table has no run folders with a config beside it"
    fingerprints, vocabularies = (evidence.config_values("data", name) for name in ("fingerprint", "vocabulary"))
    validation_tokens = evidence.config_values("measure", "validation_tokens")
    text = f"{', '.join(corpora)}, {', '.join(vocabularies)} vocabulary, fingerprint {', '.join(fingerprints)}"
    return "yes", text + (
        f"; loss on {format_count(float(validation_tokens[0]))} validation tokens"
        if len(validation_tokens) == 1
        else ""
    )


def _downstream(evidence: Evidence) -> tuple[Answer, str]:
    if not evidence.studies:
        return "no", evidence.missing.get("downstream", "none")
    return "yes", ", ".join(f"{study.task}: {study.verdict}" for study in evidence.studies)


def _commit(evidence: Evidence) -> tuple[Answer, str]:
    commits, versions = evidence.environment_values("commit"), evidence.environment_values("packages", "jax")
    if not commits:
        return "unknown", "no run has an environment.json that names a commit"
    text = f"commit {', '.join(c[:12] for c in commits[:3])}; jax {', '.join(versions)}"
    return ("yes" if len(commits) == 1 else "no"), text + (
        "" if len(commits) == 1 else f"; {len(commits)} commits mixed"
    )


def _hardware(evidence: Evidence) -> tuple[Answer, str]:
    devices = [d for d in evidence.environment_values("devices") if d]
    if not devices:
        return "unknown", "no run has an environment.json that names its devices"
    kernels = evidence.environment_values("attention_kernel")
    return "yes", f"{table_checks.shorten(devices)}; attention by {', '.join(kernels) or 'an unnamed kernel'}"


def _table(evidence: Evidence) -> tuple[Answer, str]:
    digest = evidence.fit.document["table"]["sha256"][:12]
    if evidence.table_unchanged is None:
        return "no", f"the table {digest} is not beside the fit"
    if not evidence.table_unchanged:
        return "no", f"the table has changed since the fit, which names {digest}"
    plan = f"; plan {evidence.plan_hash[:12]}" if evidence.plan_hash else "; no frozen plan"
    return "yes", f"{len(evidence.table)} rows, sha256 {digest}{plan}"


CHECKLIST: tuple[tuple[str, str, Callable[[Evidence], tuple[Answer, str]]], ...] = (
    ("counting", "The way parameters are counted is named", _counting),
    ("flops", "Training compute is counted, not taken as 6 N D", _flops),
    ("range", f"The runs span {MIN_COMPUTE_SPAN:g}x of compute or more", _range),
    ("apart", "Parameters and tokens vary independently", _separate),
    ("rates", "Learning rates come from a rule or a scan at every size", _rates),
    ("inside", "The best learning rates lie inside their scans", _inside),
    ("schedule", "Every schedule ends with its run", _schedule),
    ("repeated", "Repetition of data is reported", _repeated),
    ("data", "Corpus, vocabulary and validation set are named", _data),
    ("bytes", "Loss is given per byte of text", _bytes),
    ("seeds", f"The noise of a run is measured with {MIN_SEEDS} seeds", _seeds),
    ("left-out", "Excluded points are counted, with reasons", _left_out),
    ("form", "The form of the law is chosen by hold-out in compute", _form),
    ("optimum", "The fit finds its optimum from many starts", _optimum),
    ("intervals", "Intervals are reported, with their method", _intervals),
    ("otherwise", "Sensitivity to fitting choices is reported", _sensitivity),
    ("backtest", "Forecasts from smaller runs are scored on larger ones", _backtest),
    ("held-out", "A held-out run is forecast", _held_out),
    ("beyond", f"The held-out run lies {MIN_EXTRAPOLATION:g}x or more beyond the fit", _beyond),
    ("downstream", "Downstream tasks are measured", _downstream),
    ("code", "All runs come from one named version of the code", _commit),
    ("hardware", "The hardware is named", _hardware),
    ("table", "The table behind the law is kept unchanged", _table),
)
