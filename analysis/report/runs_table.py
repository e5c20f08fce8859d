"""The end of a report: every run in a table that sorts, and where all of it comes from."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np
import pandas as pd

from analysis.plots.style import compact, scientific
from analysis.report import html
from analysis.report.evidence import Evidence
from analysis.report.html import Cell, Section, escape, paragraph
from analysis.tables import results

COLUMN_FORMATS: dict[str, Callable[[Any], str]] = {
    "params_total": compact,
    "params_matmul": compact,
    "tokens": compact,
    "flops": scientific,
    "loss": lambda x: f"{x:.4f}",
    "bits_per_byte": lambda x: f"{x:.4f}",
    "learning_rate": lambda x: f"{x:.3g}",
    "seed": lambda x: f"{x:.0f}",
}
MAX_ROWS = 800
"""Rows that a page lists: more make it too large to send."""
ROLE_LABELS = {"held": "◆ held out", "fitted": "fitted", "out": "not used"}


def runs_section(found: Evidence) -> Section:
    """The runs of the table, also those that failed: their part in the fit, their counts, losses, flags. Of more than
    MOST, those held out, those flagged or not done, and of the others as many as there is room for, in equal steps."""
    fit, table = found.fit, found.table
    column = fit.document["params_column"]
    held, fitted = set(fit.held_out["run_id"]), set(fit.points["run_id"])
    names = [str(run) for run in table["run_id"]] if "run_id" in table else [f"row {at + 1}" for at in table.index]
    roles = ["held" if run in held else "fitted" if run in fitted else "out" for run in names]
    predicted = _predicted(found)
    formats = {column: compact} | COLUMN_FORMATS | dict.fromkeys((f"{s.task}/accuracy" for s in found.studies), _share)
    numeric = [name for name in formats if name in table]
    text = [name for name in ("flags", "reason") if name in table]
    heads = ["run", "part", *(["status"] if "status" in table else []), *numeric, "off the law (%)", *text]
    rows, kept = [], _kept(table, np.array(roles) == "held")
    for at in kept:
        row, run, role = table.iloc[at], names[at], roles[at]
        cells = [Cell(f"<code>{escape(run)}</code>", run, "text"), Cell(_role(role), role, "text")]
        if "status" in table:
            cells.append(_status(str(row["status"])))
        cells += [_number(row[name], formats[name], row.get(f"{name}_stderr")) for name in numeric]
        cells.append(_number(predicted.get(run, math.nan), lambda x: f"{x:+.2f}"))
        rows.append([*cells, *(_flag(row[name], name) for name in text)])
    said = (
        "Click a heading to sort. ◆ held out: not seen by the fit. Off the law: measured over predicted loss, less one."
    )
    if len(kept) < len(table):
        said += (
            f" {len(kept):,} of {len(table):,} are listed: those held out, flagged or not done come first, the others "
            "in equal steps of the table."
        )
    body = html.html_table(
        [head.replace("_", " ") for head in heads], rows, "Runs", sorts=True, css="runs tall",
        marks=["held" if roles[at] == "held" else "" for at in kept],
    )  # fmt: skip
    return Section("runs", f"Runs ({len(table)})", "Runs", paragraph(said) + body)


def _kept(table: pd.DataFrame, held: np.ndarray) -> np.ndarray:
    """Which rows are listed, in the order of the table."""
    odd = np.zeros(len(table), bool)
    for name, usual in (("flags", ""), ("status", "done")):
        if name in table:
            odd |= (table[name].fillna(usual).astype(str) != usual).to_numpy()
    return html.sample_evenly((np.flatnonzero(part) for part in (held, odd & ~held, ~odd & ~held)), MAX_ROWS)


def _share(value: float) -> str:
    return f"{value:.3f}"


def _predicted(found: Evidence) -> dict[str, float]:
    """run_id -> measured over predicted less one, in percent, of the runs that the law was fitted to or held out of."""
    points = found.all_points
    percent = 100 * (points["loss"] / found.fit.predict(points) - 1)
    return dict(zip(points["run_id"], percent.astype(float), strict=True))


def _role(role: str) -> str:
    return f'<span class="mark">{ROLE_LABELS[role]}</span>' if role == "held" else ROLE_LABELS[role]


def _status(status: str) -> Cell:
    said = escape(status) if status == "done" else f'<strong class="mark">✕ {escape(status)}</strong>'
    return Cell(said, status, "text")


def _number(value: Any, show: Callable[[Any], str], error: Any = None) -> Cell:
    """error: the standard error of the value, shown beside it where it is known."""
    number, spread = (pd.to_numeric(each, errors="coerce") for each in (value, error))
    if pd.isna(number) or not math.isfinite(number):
        return Cell("")
    said = escape(show(float(number))) if number or show is not scientific else "0"
    known = spread is not None and pd.notna(spread)
    return Cell(said + (f' <span class="soft">± {spread:.2g}</span>' if known else ""), float(number))


def _flag(value: Any, name: str) -> Cell:
    said = "" if pd.isna(value) else str(value)
    if not said:
        return Cell("", None, "text")
    mark = f'<span class="mark">⚑ {escape(said)}</span>' if name == "flags" else escape(said)
    return Cell(mark, said, "text" if name == "flags" else "prose")


def provenance_section(found: Evidence) -> Section:
    """Hashes, versions, machines, and the commands that make all of it again."""
    d = found.fit.document
    objective, choice = d["objective"], d["choice"]
    width = f" (delta {objective['delta']:g})" if objective["delta"] else ""
    state = {None: "; it is not beside the fit", True: "; unchanged since the fit", False: "; CHANGED since the fit"}
    grown = "Too few points for a back-test inside them: forecast intervals take the form of the law for granted."
    if choice is not None and choice["drift"] is not None:
        grown = (
            f"Inside the fitted points (top 3x of compute held out), the best was {choice['chosen']}; errors grew by "
            f"{choice['drift']:.2%} per e-fold of compute, and forecast intervals are scaled to that."
        )
    facts = (
        ("table", f"{d['table']['path']}, sha256 {d['table']['sha256']}{state[found.table_unchanged]}"),
        *([("rows", f"where {d['table']['where']}")] if d["table"].get("where") else []),
        ("plan", f"plan.json, sha256 {found.plan_hash}" if found.plan_hash else "none beside the table"),
        ("fit", f"fit.json, schema {d['schema']}; law {d['law']} ({d['source']}), seed {d['seed']}"),
        (
            "objective",
            f"{objective['name']}{width}, summed over points, {objective['value']:.6g}; points weighted by C^"
            f"{d['weight_power']:g}; {d['reached']} of {d['starts']} starts reached it",
        ),
        ("points", f"{len(found.fit.points)} fitted, {len(found.fit.held_out)} held out (rule: {d['holdout']}), "
                   f"{d['dropped']} failed or diverged and left out"),
        ("intervals", f"{d['uncertainty']}. {grown}"),
        ("fit made with", ", ".join(f"{name} {version}" for name, version in d["versions"].items())),
        *_machines(found),
    )  # fmt: skip
    commands = escape("\n".join(commands_to_reproduce(found)))
    body = f"{html.name_list(facts)}<p>To make it again:</p><pre><code>{commands}</code></pre>"
    return Section("provenance", "Provenance", "Provenance", body)


def _machines(found: Evidence) -> list[tuple[str, str]]:
    """What the runs were trained with, where their folders say so."""
    packages: dict[str, list[str]] = {}
    for environment in found.environments.values():
        for name, version in (environment.get("packages") or {}).items():
            packages.setdefault(str(name), [])
            if version not in packages[name]:
                packages[name].append(version)
    made = ", ".join(f"{name} {' and '.join(map(str, versions))}" for name, versions in packages.items())
    said = {
        "runs made with": made,
        "commit of the runs": ", ".join(found.environment_values("commit")),
        "devices": "; ".join(found.environment_values("devices")),
        "platform": "; ".join(found.environment_values("platform")),
        "attention": ", ".join(found.environment_values("attention_kernel")),
        "corpus": "; ".join(
            f"{name} {', '.join(found.config_values('data', name))}"
            for name in ("corpus", "vocabulary", "fingerprint")
            if found.config_values("data", name)
        ),
    }
    return [(name, text) for name, text in said.items() if text]


def commands_to_reproduce(found: Evidence) -> list[str]:
    """The commands that lead from nothing to this page, as far as the files tell them."""
    d = found.fit.document
    made = []
    if (sweep := str(found.plan.get("sweep", ""))) and (corpora := found.config_values("data", "corpus")):
        made += [f"scaling data prepare {quote(corpus)}" for corpus in corpora]
        asked = [f"scaling eval {quote(f'out/{sweep}')}"] if found.studies else []
        verbs = ("plan", "run", "collect")
        plan, run, collect = (f"scaling sweep {verb} {quote(sweep)}" for verb in verbs)
        made += [plan, run, *asked, collect]
    table = d["table"]["path"] or "TABLE"
    folder = f"out/{sweep}" if sweep else "."
    where = f"{folder}/{table}" if sweep else table
    options = " ".join(f"--{name} {quote(text)}" for name, text in _options(found).items())
    beside = "" if Path(table).parent == Path(".") else f" --out {quote(f'{folder}/fit.json')}"
    made.append(f"scaling fit {quote(where)} {options}{beside}")
    return [*made, f"scaling report {quote(folder)}"]


def _options(found: Evidence) -> dict[str, str]:
    """The options of `scaling fit` that are not as they are unless given. A fit.json of before `settings` tells the
    objective and the weighting that came out, and not what was held."""
    d = found.fit.document
    came = {"draws": len(d["draws"])}
    if not d["chosen"]:
        came |= {
            "objective": d["objective"]["name"],
            "delta": d["objective"]["delta"],
            "weight_power": d["weight_power"],
        }
    asked = {"objective": "huber", "delta": 1e-3, "weight_power": 0.0} | d.get("settings", came)
    column = "params" if "params" in found.table else results.DEFAULT_PARAMS_COLUMN
    given = {
        "columns": ",".join(f"{name}={source}" for name, source in d["table"].get("columns", {}).items()),
        "where": d["table"].get("where", ""),
        "holdout": "" if d["holdout"] == "none" else d["holdout"],
        "objective": "" if asked["objective"] == "huber" else asked["objective"],
        "delta": "" if asked["delta"] in (None, 1e-3) else f"{asked['delta']!r}",
        "weight-power": f"{asked['weight_power']!r}" if asked["weight_power"] else "",
        "params-column": "" if d["params_column"] == column else d["params_column"],
        "fix": ",".join(f"{name}={value!r}" for name, value in asked.get("fixed", {}).items()),
        "bound": ",".join(f"{name}={ends}" for name, ends in asked.get("bounds", {}).items()),
        "draws": "" if asked["draws"] == 512 else f"{asked['draws']}",
        "level": "" if d["level"] == 0.9 else f"{d['level']!r}",
        "seed": f"{d['seed']}" if d["seed"] else "",
    }
    return {"law": "chosen" if d["chosen"] else d["law"]} | {name: text for name, text in given.items() if text}
