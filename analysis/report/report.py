"""Writes the report of a fitted sweep, one self-contained page. evidence.py reads the folder, html.py builds HTML,
runs_table.py makes the sections about single runs and their origin, and figures.py lists the figures.

A section is a function of the evidence; one without anything to show says why. If a section or a figure cannot be made,
a line in its place says so, and the others are made all the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from analysis.files import write_by_rename
from analysis.forecasting.backtest import CHOSEN
from analysis.plots import style
from analysis.plots.style import format_count, format_scientific
from analysis.report import html, runs_table
from analysis.report.checklist import Item, fill_checklist
from analysis.report.evidence import Evidence, gather
from analysis.report.figures import CAPTIONS, DrawFigure, available_figures
from analysis.report.html import Cell, Section, escape, large_numbers, paragraph
from analysis.report.tolerate import Tolerant


class WrittenReport(NamedTuple):
    """The path of the page, the files of its figures, the filled-in checklist, and the parts that an unexpected
    exception made impossible, with the exception."""

    path: Path
    figures: list[Path]
    checklist: list[Item]
    failed: dict[str, str]


def write_report(
    directory: Path, scans: Path | None = None, *, report_progress: Callable[[str], None] = lambda _: None
) -> WrittenReport:
    """Draws the figures of <directory>/fit.json and writes <directory>/report.html.

    Args:
      scans: a table or JSON of learning-rate scans. Default: those in the table itself, else those of the sweep beside
        this one that the runs name.
      report_progress: called with the name of each step.
    Raises:
      TableError: the folder holds no fit, or a fit that has no figures, or the page cannot be written.
    """
    evidence = gather(directory, scans, report_progress=report_progress)
    tolerant = Tolerant()
    figures, files = {}, []  # name -> HTML; paths
    for name, draw in tolerant("figures", partial(available_figures, evidence), {}).items():
        report_progress(f"figure {name}")
        part, nothing = f"figure {name}", ("", list[Path]())
        figures[name], saved = tolerant(part, partial(_make_figure, name, draw, directory / "figures"), nothing)
        figures[name] = figures[name] or _failure_note(part, tolerant)
        files += saved
    report_progress("page")
    checklist = fill_checklist(evidence, tolerant)
    text = render_page(evidence, figures, checklist, tolerant)
    path = write_by_rename(directory / "report.html", lambda to: to.write_text(text, encoding="utf-8"))
    return WrittenReport(path, files, checklist, {**evidence.failed, **tolerant.failed})


def _make_figure(name: str, draw: DrawFigure, folder: Path) -> tuple[str, list[Path]]:
    """(a figure as HTML, its SVG and PNG files in the folder)."""
    figure = draw(style.LIGHT)
    files = [style.save(figure, folder / f"{name}.{kind}") for kind in ("svg", "png")]
    return html.figure_block(draw, name, CAPTIONS.get(name, "")), files


def render_page(evidence: Evidence, figures: Mapping[str, str], checklist: Sequence[Item], tolerant: Tolerant) -> str:
    """The whole page as HTML. figures: name -> HTML; tolerant: records the sections that cannot be made."""
    sections = [
        _section(tolerant, "forecast", "Forecast", partial(forecast_section, evidence)),
        _section(tolerant, "law", "The law", partial(law_section, evidence, figures)),
        _section(tolerant, "surface", "Surface and frontier", partial(surface_section, figures)),
        _section(tolerant, "backtest", "Back-test", partial(backtest_section, evidence, figures)),
        _section(tolerant, "sensitivity", "Sensitivity", partial(sensitivity_section, figures)),
        _section(tolerant, "rates", "Learning rates", partial(rates_section, evidence, figures)),
        _section(tolerant, "curves", "Curves", partial(curves_section, evidence, figures)),
        _section(tolerant, "downstream", "Downstream", partial(downstream_section, evidence, figures)),
        _section(tolerant, "checklist", "Checklist", partial(checklist_section, checklist)),
        _section(tolerant, "runs", "Runs", partial(runs_table.runs_section, evidence)),
        _section(tolerant, "provenance", "Provenance", partial(runs_table.provenance_section, evidence)),
    ]
    head = tolerant("headline", partial(headline, evidence), "") or _failure_note("headline", tolerant)
    failures = "; ".join(f"{part}: {why}" for part, why in {**evidence.failed, **tolerant.failed}.items())
    note = f'<p class="warning"><strong>Parts could not be made</strong>: {escape(failures)}</p>' if failures else ""
    return html.page_html(f"{evidence.name}: a scaling law", head + note, sections)


def _section(tolerant: Tolerant, key: str, short: str, make: Callable[[], Section]) -> Section:
    """A section, or one that says why it cannot be made."""
    part = f"section {key}"
    return tolerant(part, make, None) or Section(key, short, short, _failure_note(part, tolerant))


def _failure_note(part: str, tolerant: Tolerant) -> str:
    return paragraph(f"The {part} could not be made: {tolerant.missing[part]}", "warning")


def _figure_grid(figures: Mapping[str, str], *names: str, beside: str = "") -> str:
    """The named figures, those that exist, in a grid; "" without any. beside: HTML for a place of the grid after
    them."""
    blocks = "".join(figures[name] for name in names if name in figures)
    return f'<div class="figures">{blocks}{beside}</div>' if blocks else ""


def headline(evidence: Evidence) -> str:
    """The law, what it was fitted to, its warnings, and the number of flagged runs, as HTML."""
    d, fit = evidence.fit.document, evidence.fit
    low, high = d["intervals"]["exponent_a"]
    flag_note = ""
    if evidence.flags_by_run:
        counts = Counter(name for names in evidence.flags_by_run.values() for name in names.split(", "))
        flags = ", ".join(f"{n} {name}" for name, n in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))
        counted = f"{len(evidence.flags_by_run)} of {len(evidence.table)} runs are flagged"
        flag_note = f'<p class="warning"><strong>{counted}</strong>: {escape(flags)}; see <a href="#runs">Runs</a>.</p>'
    warnings = "".join(f'<p class="warning"><strong>Warning:</strong> {escape(note)}</p>' for note in d["warnings"])
    flops = fit.points["flops"]
    return (
        f'<p class="law">{escape(fit.describe())}</p><p class="soft">N is {escape(d["params_column"])}, D is training '
        f"tokens, L is validation loss in nats per token ({escape(d['source'])}). Fitted to {len(fit.points)} runs of "
        f"{format_scientific(flops.min())} to {format_scientific(flops.max())} FLOPs. Compute-optimal N grows as "
        f"C<sup>{d['exponent_a']:.2f}</sup> ({d['level']:.0%} interval {low:.2f} to {high:.2f}), C being training "
        f"compute.</p>{warnings}{flag_note}"
    )


def forecast_section(evidence: Evidence) -> Section:
    fit = evidence.fit
    if fit.held_out.empty:
        note = paragraph("No run was held out, so no forecast is checked here; `scaling fit --holdout largest` does.")
        return Section("forecast", "Forecast of a run that the fit did not see", "Forecast", note)
    row = fit.forecast(fit.held_out)[-1]
    beyond = float(fit.held_out["flops"].iloc[-1] / fit.points["flops"].max())
    forecast_numbers = large_numbers(
        (
            ("predicted", f"{row['predicted']:.4f}", ""),
            (f"{row['level']:.0%} interval", f"{row['low']:.3f} to {row['high']:.3f}", ""),
            ("measured", f"{row['measured']:.4f}", ""),
            ("relative error", f"{abs(row['relative_error']) * 100:.2g} %", "key"),
        )
    )
    text = (
        f"{format_count(row['params'])} parameters, {format_count(row['tokens'])} tokens: "
        f"{beyond:.3g} times the compute of the "
        "largest run fitted. Losses are in nats per token."
    )
    return Section(
        "forecast", "Forecast of a run that the fit did not see", "Forecast", paragraph(text, "") + forecast_numbers
    )


def law_section(evidence: Evidence, figures: Mapping[str, str]) -> Section:
    d = evidence.fit.document
    rows = [
        [
            Cell(escape(name), css="text"),
            Cell(f"{value:.5g}"),
            Cell(f"{d['standard_errors'][name]:.2g}"),
            Cell("{:.4g} to {:.4g}".format(*d["intervals"][name])),
        ]
        for name, value in {**evidence.fit.values, "exponent_a": d["exponent_a"]}.items()
    ]
    heads = ("parameter", "value", "standard error", f"{d['level']:.0%} interval")
    values = html.html_table(heads, rows, "Parameters of the law")
    body = _figure_grid(figures, "loss_by_tokens", "loss_by_params", "residuals", beside=values) or values
    return Section("law", "The law and the runs", "The law", body)


def surface_section(figures: Mapping[str, str]) -> Section:
    body = _figure_grid(figures, "surface", "frontier", "isoflop")
    return Section("surface", "Loss surface and compute-optimal frontier", "Surface and frontier", body or _none(""))


def backtest_section(evidence: Evidence, figures: Mapping[str, str]) -> Section:
    title = "Back-test: smaller runs forecast larger ones"
    if evidence.backtest.empty:
        return Section("backtest", title, "Back-test", _none(evidence.missing.get("backtest", "")))
    rows = []
    for (factor, law), part in evidence.backtest.groupby(["factor", "law"], sort=False):
        error = (part["predicted"] / part["measured"] - 1).abs().mean()
        inside = ((part["low_90"] <= part["measured"]) & (part["measured"] <= part["high_90"])).mean()
        name = f"{law}: {part['choice'].iloc[0]}" if law == CHOSEN else str(law)
        counts = (int(part["n_train"].iloc[0]), len(part))
        cells = [Cell(f"{factor:g}x", factor), Cell(escape(name), name, "text"), *(Cell(str(n), n) for n in counts)]
        rows.append([*cells, Cell(f"{error:.2%}", error), Cell(f"{inside:.0%}", inside)])
    heads = ("compute cut by", "law", "runs fitted", "runs forecast", "mean error", "inside 90% interval")
    table = html.html_table(heads, rows, "Back-test", sorts=True)
    return Section("backtest", title, "Back-test", _figure_grid(figures, "backtest_errors", "backtest_laws") + table)


def sensitivity_section(figures: Mapping[str, str]) -> Section:
    body = _figure_grid(figures, "sensitivity") or _none(
        "the fit holds no panel; `scaling fit` makes one unless --no-panel"
    )
    return Section("sensitivity", "Sensitivity of the law to fitting choices", "Sensitivity", body)


def rates_section(evidence: Evidence, figures: Mapping[str, str]) -> Section:
    how = evidence.fit.document.get("learning_rates", {})
    listed = "".join(f"<li>{count} runs: {escape(name)}</li>" for name, count in how.items())
    sources = f"<p>How the learning rates of the fitted runs were found:</p><ul>{listed}</ul>" if how else ""
    why = "" if evidence.rate_law is not None else _none(evidence.missing.get("rates", ""))
    body = sources + _figure_grid(figures, "rates_tried", "rates_used") + why
    return Section("rates", "Learning rates", "Learning rates", body)


def curves_section(evidence: Evidence, figures: Mapping[str, str]) -> Section:
    body = _figure_grid(figures, "loss_curves", "collapse") or _none(evidence.missing.get("curves", ""))
    if evidence.collapse is not None and evidence.collapse.left_out:
        reasons = ", ".join(f"{count} {reason}" for reason, count in evidence.collapse.left_out.items())
        body += paragraph(f"Runs not compared: {reasons}.")
    return Section("curves", "Loss curves and their collapse", "Curves", body)


def downstream_section(evidence: Evidence, figures: Mapping[str, str]) -> Section:
    title = "Downstream tasks"
    if not evidence.studies:
        return Section("downstream", title, "Downstream", _none(evidence.missing.get("downstream", "")))
    from analysis.downstream import study as downstream

    rows = []
    for study in evidence.studies:
        best = float(study.points["accuracy"].max())
        ahead = ""
        if study.accuracy_forecast is not None:
            last = study.curve().iloc[-1]
            ahead = f"{last['predicted']:.3f} ({last['low']:.3f} to {last['high']:.3f})"
        law = "none" if study.backtest is None else study.backtest.best.name
        cells = [Cell(escape(text), text, "text") for text in (study.task, study.verdict)]
        cells += [Cell(f"{value:.3f}", value) for value in (study.chance, best, study.ceiling)]
        rows.append([*cells, Cell(escape(law), law, "text"), Cell(escape(ahead), ahead or None, "text")])
    ahead = f"at {downstream.EXTRAPOLATION_FACTOR:g}x compute ({evidence.studies[0].level:.0%})"
    heads = ("task", "verdict", "chance", "best run", "ceiling", "law", ahead)
    table = html.html_table(heads, rows, title, sorts=True)
    table += "".join(paragraph(f"{task} has no study: {why}.") for task, why in evidence.not_studied.items())
    return Section(
        "downstream",
        title,
        "Downstream",
        table + _figure_grid(figures, *(n for n in figures if n.startswith("downstream"))),
    )


def checklist_section(checklist: Sequence[Item]) -> Section:
    counts = Counter(item.answer for item in checklist)
    rows = [
        [
            Cell(f'<span class="{item.answer}">{item.answer}</span>', item.answer, "text"),
            Cell(
                f"{escape(item.requirement)}<small>{html.with_code(item.evidence)}</small>", item.requirement, "prose"
            ),
        ]
        for item in checklist
    ]
    totals = ", ".join(f"{counts[answer]} {answer}" for answer in ("yes", "no", "unknown"))
    text = f"{totals}, filled in from the files beside this page."
    table = html.html_table(
        ("answer", "what a good scaling study reports, and the evidence here"), rows, "Checklist", sorts=True
    )
    return Section("checklist", "What a good scaling study reports", "Checklist", paragraph(text) + table)


def _none(why: str) -> str:
    """The paragraph of a section without content. why: the reason, "" if none is known."""
    return paragraph(f"Nothing to show: {why.rstrip('.')}." if why else "Nothing to show.")
