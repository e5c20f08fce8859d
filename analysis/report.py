"""One self-contained page for a fitted sweep: law, forecast, figures, every run, provenance. No script, no request."""

from __future__ import annotations

import html
import io
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from analysis import checks, collapse, collapse_plot, fit_plot, flags, plots, results, saved
from analysis.collapse import Collapse
from analysis.plots import DARK, LIGHT, Theme, compact, scientific
from analysis.results import TableError
from analysis.saved import SavedFit

CAPTIONS = {
    "loss_by_tokens": "Each curve is the fitted law at one model size; points are runs.",
    "loss_by_params": "Each curve is the fitted law at one horizon of training tokens; points are runs.",
    "isoflop": "At a fixed budget C = 6 N D the best size lies at the minimum; solid where the runs reach.",
    "sensitivity": "The same runs, fitted otherwise. A dot outside the shaded interval: the convention matters more.",
    "collapse": "Loss curves as they are, and normalised: reduced loss over what the other cells' trend expects at the "
    "end, against the share of the run. Cells that are trained alike lie on one another.",
    "surface": "Contours of equal loss, the runs, and the best split of each budget.",
    "frontier": "The best model size for each budget.",
    "residuals": "What is left after the fit. A trend here means that the law's form is wrong for these runs.",
}

STYLE = """
:root{color-scheme:light dark;--ink:#1c1d21;--paper:#fff;--faint:#e3e5ea;--soft:#5d626d;--accent:#c2410c}
@media(prefers-color-scheme:dark){:root{--ink:#e7e8ec;--paper:#16181d;--faint:#31353e;--soft:#a0a5b0;--accent:#fb923c}}
*{box-sizing:border-box}
body{margin:0 auto;padding:1.5rem 1rem 4rem;max-width:60rem;background:var(--paper);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
h1{font-size:1.5rem;margin:.2rem 0}h2{font-size:1.1rem;margin:2.2rem 0 .6rem}
.soft,figcaption{color:var(--soft);font-size:.9rem}
.law{font-size:1.15rem;font-family:ui-monospace,Menlo,Consolas,monospace;overflow-wrap:anywhere}
.numbers{display:flex;flex-wrap:wrap;gap:.8rem 2.2rem;margin:1rem 0;padding:0}
.numbers div{min-width:7rem}.numbers dt{color:var(--soft);font-size:.85rem}
.numbers dd{margin:0;font-size:1.5rem;font-variant-numeric:tabular-nums}.numbers .key{color:var(--accent)}
figure{margin:1.4rem 0}figure svg{width:100%;height:auto}
.dark{display:none}@media(prefers-color-scheme:dark){.dark{display:block}.light{display:none}}
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:.87rem;font-variant-numeric:tabular-nums}
th,td{text-align:right;padding:.25rem .8rem .25rem 0;border-bottom:1px solid var(--faint);white-space:nowrap}
th:first-child,td:first-child{text-align:left}tr.held td{color:var(--accent)}
li{overflow-wrap:anywhere}
"""


def write(directory: Path) -> tuple[Path, list[Path]]:
    """Draws the figures of <directory>/fit.json and writes <directory>/report.html.

    Returns the page and the figures. Raises TableError when the folder holds no fit.
    """
    fit = saved.load(directory / "fit.json")
    figures = fit_plot.save_all(fit, directory / "figures")
    table = runs(directory, fit)
    curves = collapsed(directory, fit, table)
    if curves is not None:
        drawn = collapse_plot.collapse(curves, off=_off(table))
        figures += [plots.save(drawn, directory / "figures" / f"collapse.{kind}") for kind in ("svg", "png")]
    text = page(fit, table, directory.resolve().name, curves)
    return results.replace(directory / "report.html", lambda path: path.write_text(text)), figures


def runs(directory: Path, fit: SavedFit) -> pd.DataFrame:
    """Every run of the table behind the fit, failed ones too; where it is gone, the points that the fit holds."""
    try:
        return results.read(directory / fit.document["table"]["path"])
    except TableError:
        return pd.concat([fit.points, fit.held_out], ignore_index=True)


def collapsed(directory: Path, fit: SavedFit, table: pd.DataFrame) -> Collapse | None:
    """The curves of the runs behind the fit beside one another, reduced by the fit's floor; None where the folder of
    the table holds no runs, or too few that can be compared."""
    path = directory / fit.document["table"]["path"]
    folder = (path if path.is_dir() else path.parent) / "runs"
    if not folder.is_dir() or not {"run_id", "tokens", "loss"} <= set(table):
        return None
    found = collapse.compare(table, flags.read_curves(folder, table["run_id"]), fit.values.get("E"))
    return None if found.cells.empty else found


def _off(table: pd.DataFrame) -> list[str] | None:
    """The runs that the table flags as off the collapse; None for a table without flags."""
    if "flags" not in table:
        return None
    return [run for run, words in checks.marked(table).items() if "off_collapse" in words.split(", ")]


def page(fit: SavedFit, table: pd.DataFrame, name: str, curves: Collapse | None = None) -> str:
    """The whole page as HTML."""
    drawers = {key: partial(fit_plot.FIGURES[key], fit) for key in fit_plot.drawable(fit)}
    if curves is not None:
        drawers["collapse"] = partial(collapse_plot.collapse, curves, off=_off(table))
    title = f"{name}: a scaling law"
    warnings = "".join(f"<p><strong>Warning:</strong> {escape(note)}</p>" for note in fit.document["warnings"])
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style></head><body>"
        f"<h1>{escape(title)}</h1>{_law(fit)}{_flags(table)}{_forecast(fit)}{warnings}"
        f"<h2>Figures</h2>{''.join(_figure(key, draw) for key, draw in drawers.items())}"
        f"<h2>Parameters of the law</h2>{_parameters(fit)}"
        f"<h2>Runs</h2>{_runs(fit, table)}<h2>Provenance</h2>{_provenance(fit)}</body></html>\n"
    )


def escape(value: Any) -> str:
    return html.escape(str(value))


def _law(fit: SavedFit) -> str:
    d = fit.document
    low, high = d["intervals"]["exponent_a"]
    return (
        f'<p class="law">{escape(fit.describe())}</p><p class="soft">N is {escape(d["params_column"])}, D is training '
        f"tokens, L is validation loss in nats per token ({escape(d['source'])}). Compute-optimal N grows as "
        f"C<sup>{d['exponent_a']:.2f}</sup> ({d['level']:.0%} interval {low:.2f} to {high:.2f}) for C = 6 N D.</p>"
    )


def _forecast(fit: SavedFit) -> str:
    if fit.held_out.empty:
        return '<p class="soft">No run was held out, so no forecast is checked here.</p>'
    row = fit.forecast(fit.held_out)[-1]
    numbers = (
        ("predicted", f"{row['predicted']:.4f}", ""),
        (f"{row['level']:.0%} interval", f"{row['low']:.3f} to {row['high']:.3f}", ""),
        ("measured", f"{row['measured']:.4f}", ""),
        ("relative error", f"{abs(row['relative_error']) * 100:.2g} %", "key"),
    )
    cells = "".join(f'<div><dt>{dt}</dt><dd class="{css}">{dd}</dd></div>' for dt, dd, css in numbers)
    return (
        f"<h2>Forecast of a run that the fit did not see</h2><p>{compact(row['params'])} parameters, "
        f'{compact(row["tokens"])} tokens.</p><dl class="numbers">{cells}</dl>'
    )


def _flags(table: pd.DataFrame) -> str:
    """A line that counts the runs that are flagged, by flag; nothing for a table without flags."""
    marked = checks.marked(table) if {"run_id", "flags"} <= set(table) else {}
    if not marked:
        return ""
    counts = Counter(word for words in marked.values() for word in words.split(", "))
    said = ", ".join(f"{count} {word}" for word, count in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))
    return f"<p><strong>{len(marked)} of {len(table)} runs are flagged</strong>: {escape(said)}; see Runs.</p>"


def _figure(key: str, draw: Callable[[Theme], Figure]) -> str:
    themes = (("light", LIGHT), ("dark", DARK))
    drawn = "".join(f'<div class="{css}">{_svg(draw, key, theme, css)}</div>' for css, theme in themes)
    return f"<figure>{drawn}<figcaption>{CAPTIONS[key]}</figcaption></figure>"


def _svg(draw: Callable[[Theme], Figure], key: str, theme: Theme, css: str) -> str:
    """Inline SVG without its prologue; ids differ from those of every other figure on the page."""
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": f"{key}-{css}"}):
        draw(theme).savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    label = escape(CAPTIONS[key])
    return text[text.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{label}"', 1)


def _parameters(fit: SavedFit) -> str:
    d = fit.document
    rows = (
        (
            escape(name),
            f"{value:.5g}",
            f"{d['standard_errors'][name]:.2g}",
            "{:.4g} to {:.4g}".format(*d["intervals"][name]),
        )
        for name, value in {**fit.values, "exponent_a": d["exponent_a"]}.items()
    )
    return _table(("", "value", "standard error", f"{d['level']:.0%} interval"), rows)


def _runs(fit: SavedFit, table: pd.DataFrame) -> str:
    held = set(fit.held_out["run_id"])
    formats = {"params_total": compact, fit.document["params_column"]: compact, "tokens": compact, "flops": scientific}
    plain = {name: (lambda x: f"{x:.4f}") for name in ("loss", "loss_stderr", "bits_per_byte")}
    columns = [c for c in ("run_id", "status", *formats, *plain, "learning_rate", "flags", "reason") if c in table]
    shown = formats | plain | {"learning_rate": lambda x: f"{x:.3g}"}

    def cell(row: pd.Series, name: str) -> str:
        value = row[name]
        return "" if pd.isna(value) else escape(shown.get(name, str)(value))

    rows = ([cell(row, name) for name in columns] for _, row in table.iterrows())
    marks = ["held" if row.get("run_id") in held else "" for _, row in table.iterrows()]
    note = '<p class="soft">Coloured: held out, not seen by the fit.</p>' if held else ""
    return note + _table([name.replace("_", " ") for name in columns], rows, marks)


def _table(heads: Iterable[str], rows: Iterable[Iterable[str]], marks: Iterable[str] | None = None) -> str:
    """A table of cells that are HTML already."""
    listed = [list(row) for row in rows]
    head = "".join(f"<th>{head}</th>" for head in heads)
    body = "".join(
        f'<tr class="{mark}">' + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>"
        for row, mark in zip(listed, marks or [""] * len(listed), strict=True)
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _provenance(fit: SavedFit) -> str:
    d = fit.document
    objective, choice = d["objective"], d["choice"]
    width = f" (delta {objective['delta']:g})" if objective["delta"] else ""
    seen = "" if choice is None or choice["drift"] is None else f"{choice['drift']:.2%}"
    grown = (
        f"Back-test inside the fitted points (top 3x of compute held out): best was {choice['chosen']}; errors grew by "
        f"{seen} per e-fold of compute, and forecast intervals are scaled to that."
        if seen
        else "Too few points for a back-test inside them: forecast intervals take the form of the law for granted."
    )
    facts = (
        f"Objective: {objective['name']}{width}, summed over points, {objective['value']:.6g}; {d['reached']} of "
        f"{d['starts']} starts reached it.",
        f"Points fitted: {len(fit.points)}; held out: {len(fit.held_out)} (rule: {d['holdout']}); failed or diverged "
        f"and left out: {d['dropped']}.",
        *(f"Learning rates of {count} of them: {how}." for how, count in d.get("learning_rates", {}).items()),
        f"Intervals of parameters: {d['uncertainty']}, seed {d['seed']}.",
        grown,
        f"Table: {d['table']['path']}, sha256 {d['table']['sha256']}.",
        "Versions: " + ", ".join(f"{name} {version}" for name, version in d["versions"].items()) + ".",
    )
    return f"<ul>{''.join(f'<li>{escape(fact)}</li>' for fact in facts)}</ul>"
