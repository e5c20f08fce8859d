"""The last sections of a report: a table of the runs, and the provenance of the fit."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np
import pandas as pd

from analysis.plots.style import format_count, format_scientific
from analysis.report import html
from analysis.report.evidence import Evidence
from analysis.report.html import Cell, Section, escape, paragraph
from analysis.tables import results
from analysis.tables.run_status import name_statuses

COLUMN_FORMATS: dict[str, Callable[[Any], str]] = {
    "params_total": format_count,
    "params_matmul": format_count,
    "tokens": format_count,
    "flops": format_scientific,
    "loss": lambda x: f"{x:.4f}",
    "bits_per_byte": lambda x: f"{x:.4f}",
    "learning_rate": lambda x: f"{x:.3g}",
    "seed": lambda x: f"{x:.0f}",
}
MAX_ROWS = 800
"""The most rows that a page lists: more would make it too large to send."""
ROLE_LABELS = {"held": "◆ held out", "fitted": "fitted", "out": "not used"}


def runs_section(evidence: Evidence) -> Section:
    """The runs of the table, failed ones too: their role in the fit, counts, losses and flags. Of more than MAX_ROWS,
    it lists those held out, then those flagged or not done, and of the others as many as fit, in equal steps."""
    fit, table = evidence.fit, evidence.table
    column = fit.document["params_column"]
    held_out, fitted = set(fit.held_out["run_id"]), set(fit.points["run_id"])
    names = [str(run) for run in table["run_id"]] if "run_id" in table else [f"row {row + 1}" for row in table.index]
    roles = ["held" if run in held_out else "fitted" if run in fitted else "out" for run in names]
    predicted = _predicted(evidence)
    formats = (
        {column: format_count}
        | COLUMN_FORMATS
        | dict.fromkeys((f"{s.task}/accuracy" for s in evidence.studies), _share)
    )
    numeric = [name for name in formats if name in table]
    text = [name for name in ("flags", "reason") if name in table]
    heads = ["run", "part", *(["status"] if "status" in table else []), *numeric, "off the law (%)", *text]
    rows, places, statuses = [], _places_to_list(table, np.array(roles) == "held"), name_statuses(table).tolist()
    for place in places:
        row, run, role = table.iloc[place], names[place], roles[place]
        cells = [Cell(f"<code>{escape(run)}</code>", run, "text"), Cell(_role(role), role, "text")]
        if "status" in table:
            cells.append(_status(str(row["status"]), is_done=statuses[place] == "done"))
        cells += [_number(row[name], formats[name], row.get(f"{name}_stderr")) for name in numeric]
        cells.append(_number(predicted.get(run, math.nan), lambda x: f"{x:+.2f}"))
        rows.append([*cells, *(_flag(row[name], name) for name in text)])
    text = (
        "Click a heading to sort. ◆ held out: not seen by the fit. Off the law: measured over predicted loss, less one."
    )
    if len(places) < len(table):
        text += (
            f" {len(places):,} of {len(table):,} are listed: those held out, flagged or not done come first, the "
            "others in equal steps of the table."
        )
    body = html.html_table(
        [head.replace("_", " ") for head in heads], rows, "Runs", sorts=True, css="runs tall",
        marks=["held" if roles[place] == "held" else "" for place in places],
    )  # fmt: skip
    return Section("runs", f"Runs ({len(table)})", "Runs", paragraph(text) + body)


def _places_to_list(table: pd.DataFrame, is_held_out: np.ndarray) -> np.ndarray:
    """The places of the rows that are listed, in the order of the table."""
    is_unusual = np.zeros(len(table), bool)
    if "flags" in table:
        is_unusual |= (table["flags"].fillna("").astype(str) != "").to_numpy()
    is_unusual |= (name_statuses(table) != "done").to_numpy()
    parts = (is_held_out, is_unusual & ~is_held_out, ~is_unusual & ~is_held_out)
    return html.sample_evenly((np.flatnonzero(part) for part in parts), MAX_ROWS)


def _share(value: float) -> str:
    return f"{value:.3f}"


def _predicted(evidence: Evidence) -> dict[str, float]:
    """run_id -> measured over predicted loss less one, in percent, of the fitted and the held-out runs."""
    points = evidence.all_points
    percent = 100 * (points["loss"] / evidence.fit.predict(points) - 1)
    return dict(zip(points["run_id"], percent.astype(float), strict=True))


def _role(role: str) -> str:
    return f'<span class="mark">{ROLE_LABELS[role]}</span>' if role == "held" else ROLE_LABELS[role]


def _status(status: str, *, is_done: bool) -> Cell:
    content = escape(status) if is_done else f'<strong class="mark">✕ {escape(status)}</strong>'
    return Cell(content, status, "text")


def _number(value: Any, show: Callable[[Any], str], error: Any = None) -> Cell:
    """The cell of a number; empty for a missing or infinite one. error: its standard error, shown beside it if
    known."""
    number, stderr = (pd.to_numeric(entry, errors="coerce") for entry in (value, error))
    if pd.isna(number) or not math.isfinite(number):
        return Cell("")
    content = escape(show(float(number))) if number or show is not format_scientific else "0"
    has_error = stderr is not None and pd.notna(stderr)
    return Cell(content + (f' <span class="soft">± {stderr:.2g}</span>' if has_error else ""), float(number))


def _flag(value: Any, name: str) -> Cell:
    """The cell of an entry of column `flags` or `reason`."""
    text = "" if pd.isna(value) else str(value)
    if not text:
        return Cell("", None, "text")
    content = f'<span class="mark">⚑ {escape(text)}</span>' if name == "flags" else escape(text)
    return Cell(content, text, "text" if name == "flags" else "prose")


def provenance_section(evidence: Evidence) -> Section:
    """Hashes, versions, machines, and the commands that make the page again."""
    d = evidence.fit.document
    objective, choice = d["objective"], d["choice"]
    width = f" (delta {objective['delta']:g})" if objective["delta"] else ""
    state = {None: "; it is not beside the fit", True: "; unchanged since the fit", False: "; CHANGED since the fit"}
    backtest_note = (
        "Too few points for a back-test inside them: forecast intervals assume that the form of the law is right."
    )
    if choice is not None and choice["drift"] is not None:
        backtest_note = (
            f"Inside the fitted points (top 3x of compute held out), the best was {choice['chosen']}; errors grew by "
            f"{choice['drift']:.2%} per e-fold of compute, and forecast intervals are scaled to that."
        )
    facts = (
        ("table", f"{d['table']['path']}, sha256 {d['table']['sha256']}{state[evidence.table_unchanged]}"),
        *([("rows", f"where {d['table']['where']}")] if d["table"].get("where") else []),
        ("plan", f"plan.json, sha256 {evidence.plan_hash}" if evidence.plan_hash else "none beside the table"),
        ("fit", f"fit.json, schema {d['schema']}; law {d['law']} ({d['source']}), seed {d['seed']}"),
        (
            "objective",
            f"{objective['name']}{width}, summed over points, {objective['value']:.6g}; points weighted by C^"
            f"{d['weight_power']:g}; {d['reached']} of {d['starts']} starts reached it",
        ),
        ("points", f"{len(evidence.fit.points)} fitted, {len(evidence.fit.held_out)} held out (rule: {d['holdout']}), "
                   f"{d['dropped']} failed or diverged and left out"),
        ("intervals", f"{d['uncertainty']}. {backtest_note}"),
        ("fit made with", ", ".join(f"{name} {version}" for name, version in d["versions"].items())),
        *_machines(evidence),
    )  # fmt: skip
    commands = escape("\n".join(commands_to_reproduce(evidence)))
    body = f"{html.name_list(facts)}<p>To make it again:</p><pre><code>{commands}</code></pre>"
    return Section("provenance", "Provenance", "Provenance", body)


def _machines(evidence: Evidence) -> list[tuple[str, str]]:
    """Names and values of the software and hardware that the runs were trained with, as far as their folders record
    it."""
    packages: dict[str, list[str]] = {}
    for environment in evidence.environments.values():
        for name, version in (environment.get("packages") or {}).items():
            packages.setdefault(str(name), [])
            if version not in packages[name]:
                packages[name].append(version)
    all_versions = ", ".join(f"{name} {' and '.join(map(str, versions))}" for name, versions in packages.items())
    facts = {
        "runs made with": all_versions,
        "commit of the runs": ", ".join(evidence.environment_values("commit")),
        "devices": "; ".join(evidence.environment_values("devices")),
        "platform": "; ".join(evidence.environment_values("platform")),
        "attention": ", ".join(evidence.environment_values("attention_kernel")),
        "corpus": "; ".join(
            f"{name} {', '.join(evidence.config_values('data', name))}"
            for name in ("corpus", "vocabulary", "fingerprint")
            if evidence.config_values("data", name)
        ),
    }
    return [(name, text) for name, text in facts.items() if text]


def commands_to_reproduce(evidence: Evidence) -> list[str]:
    """The commands that make the runs, the fit and this page, as far as the files record them."""
    d = evidence.fit.document
    commands = []
    if (sweep := str(evidence.plan.get("sweep", ""))) and (corpora := evidence.config_values("data", "corpus")):
        commands += [f"scaling data prepare {quote(corpus)}" for corpus in corpora]
        measure = [f"scaling eval {quote(f'out/{sweep}')}"] if evidence.studies else []
        verbs = ("plan", "run", "collect")
        plan, run, collect = (f"scaling sweep {verb} {quote(sweep)}" for verb in verbs)
        commands += [plan, run, *measure, collect]
    table = d["table"]["path"] or "TABLE"
    folder = f"out/{sweep}" if sweep else "."
    where = f"{folder}/{table}" if sweep else table
    options = " ".join(f"--{name} {quote(text)}" for name, text in _options(evidence).items())
    beside = "" if Path(table).parent == Path(".") else f" --out {quote(f'{folder}/fit.json')}"
    commands.append(f"scaling fit {quote(where)} {options}{beside}")
    return [*commands, f"scaling report {quote(folder)}"]


def _options(evidence: Evidence) -> dict[str, str]:
    """Flags of `scaling fit`, without their dashes, whose values are not the defaults -> value. A fit.json of an early
    version has no `settings`: objective and weighting are then those of the result, and fixed parameters are
    unknown."""
    d = evidence.fit.document
    recorded = {"draws": len(d["draws"])}
    if not d["chosen"]:
        recorded |= {
            "objective": d["objective"]["name"],
            "delta": d["objective"]["delta"],
            "weight_power": d["weight_power"],
        }
    settings = {"objective": "huber", "delta": 1e-3, "weight_power": 0.0} | d.get("settings", recorded)
    column = "params" if "params" in evidence.table else results.DEFAULT_PARAMS_COLUMN
    options = {
        "columns": ",".join(f"{name}={source}" for name, source in d["table"].get("columns", {}).items()),
        "where": d["table"].get("where", ""),
        "holdout": "" if d["holdout"] == "none" else d["holdout"],
        "objective": "" if settings["objective"] == "huber" else settings["objective"],
        "delta": "" if settings["delta"] in (None, 1e-3) else f"{settings['delta']!r}",
        "weight-power": f"{settings['weight_power']!r}" if settings["weight_power"] else "",
        "params-column": "" if d["params_column"] == column else d["params_column"],
        "fix": ",".join(f"{name}={value!r}" for name, value in settings.get("fixed", {}).items()),
        "bound": ",".join(f"{name}={ends}" for name, ends in settings.get("bounds", {}).items()),
        "draws": "" if settings["draws"] == 512 else f"{settings['draws']}",
        "level": "" if d["level"] == 0.9 else f"{d['level']!r}",
        "seed": f"{d['seed']}" if d["seed"] else "",
    }
    return {"law": "chosen" if d["chosen"] else d["law"]} | {name: text for name, text in options.items() if text}
