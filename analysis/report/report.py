"""One self-contained page about a fitted sweep. analysis/report/html.py makes the HTML, analysis/report/evidence.py
reads the folder,
analysis/report/runs_table.py shows single runs and where they come from, analysis/report/figures.py says what is drawn.

A section is a function of the evidence; one that has nothing to show returns a line that says why. A section or a
figure that cannot be made is a line in its place, and costs no other.
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
from analysis.plots.style import compact, scientific
from analysis.report import checklist, evidence, html, runs_table
from analysis.report.checklist import Item
from analysis.report.evidence import Evidence
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
    found = evidence.gather(directory, scans, report_progress=report_progress)
    attempt = Tolerant()
    drawn, files = {}, []
    for name, draw in attempt("figures", partial(available_figures, found), {}).items():
        report_progress(f"figure {name}")
        part, nothing = f"figure {name}", ("", list[Path]())
        drawn[name], saved = attempt(part, partial(_drawn, name, draw, directory / "figures"), nothing)
        drawn[name] = drawn[name] or _unmade(part, attempt)
        files += saved
    report_progress("page")
    asked = checklist.fill_checklist(found, attempt)
    text = render_page(found, drawn, asked, attempt)
    path = write_by_rename(directory / "report.html", lambda to: to.write_text(text, encoding="utf-8"))
    return WrittenReport(path, files, asked, {**found.failed, **attempt.failed})


def _drawn(name: str, draw: DrawFigure, folder: Path) -> tuple[str, list[Path]]:
    """A figure as HTML, and its files."""
    figure = draw(style.LIGHT)
    files = [style.save(figure, folder / f"{name}.{kind}") for kind in ("svg", "png")]
    return html.figure_block(draw, name, CAPTIONS.get(name, "")), files


def render_page(found: Evidence, drawn: Mapping[str, str], asked: Sequence[Item], attempt: Tolerant) -> str:
    """The whole page as HTML. drawn: figures as HTML, by name; attempt: is told of the sections that cannot be made."""
    sections = [
        _section(attempt, "forecast", "Forecast", partial(forecast_section, found)),
        _section(attempt, "law", "The law", partial(law_section, found, drawn)),
        _section(attempt, "surface", "Surface and frontier", partial(surface_section, drawn)),
        _section(attempt, "backtest", "Back-test", partial(backtest_section, found, drawn)),
        _section(attempt, "sensitivity", "Sensitivity", partial(sensitivity_section, drawn)),
        _section(attempt, "rates", "Learning rates", partial(rates_section, found, drawn)),
        _section(attempt, "curves", "Curves", partial(curves_section, found, drawn)),
        _section(attempt, "downstream", "Downstream", partial(downstream_section, found, drawn)),
        _section(attempt, "checklist", "Checklist", partial(checklist_section, asked)),
        _section(attempt, "runs", "Runs", partial(runs_table.runs_section, found)),
        _section(attempt, "provenance", "Provenance", partial(runs_table.provenance_section, found)),
    ]
    head = attempt("headline", partial(headline, found), "") or _unmade("headline", attempt)
    failed = "; ".join(f"{part}: {why}" for part, why in {**found.failed, **attempt.failed}.items())
    lacking = f'<p class="warning"><strong>Parts could not be made</strong>: {escape(failed)}</p>' if failed else ""
    return html.page_html(f"{found.name}: a scaling law", head + lacking, sections)


def _section(attempt: Tolerant, key: str, short: str, make: Callable[[], Section]) -> Section:
    """A section, or one of the reason why it cannot be made."""
    part = f"section {key}"
    return attempt(part, make, None) or Section(key, short, short, _unmade(part, attempt))


def _unmade(part: str, attempt: Tolerant) -> str:
    return paragraph(f"The {part} could not be made: {attempt.missing[part]}", "warning")


def _figures(drawn: Mapping[str, str], *names: str, beside: str = "") -> str:
    """Those of the figures that there are, in a grid. beside: HTML that takes a place in it after them."""
    made = "".join(drawn[name] for name in names if name in drawn)
    return f'<div class="figures">{made}{beside}</div>' if made else ""


def headline(found: Evidence) -> str:
    d, fit = found.fit.document, found.fit
    low, high = d["intervals"]["exponent_a"]
    marked = ""
    if found.flags_by_run:
        counts = Counter(word for words in found.flags_by_run.values() for word in words.split(", "))
        said = ", ".join(f"{n} {word}" for word, n in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))
        marked = (
            f'<p class="warning"><strong>{len(found.flags_by_run)} of {len(found.table)} runs are flagged</strong>: '
            f'{escape(said)}; see <a href="#runs">Runs</a>.</p>'
        )
    warnings = "".join(f'<p class="warning"><strong>Warning:</strong> {escape(note)}</p>' for note in d["warnings"])
    flops = fit.points["flops"]
    return (
        f'<p class="law">{escape(fit.describe())}</p><p class="soft">N is {escape(d["params_column"])}, D is training '
        f"tokens, L is validation loss in nats per token ({escape(d['source'])}). Fitted to {len(fit.points)} runs of "
        f"{scientific(flops.min())} to {scientific(flops.max())} FLOPs. Compute-optimal N grows as "
        f"C<sup>{d['exponent_a']:.2f}</sup> ({d['level']:.0%} interval {low:.2f} to {high:.2f}), C being training "
        f"compute.</p>{warnings}{marked}"
    )


def forecast_section(found: Evidence) -> Section:
    fit = found.fit
    if fit.held_out.empty:
        said = paragraph("No run was held out, so no forecast is checked here; `scaling fit --holdout largest` does.")
        return Section("forecast", "Forecast of a run that the fit did not see", "Forecast", said)
    row = fit.forecast(fit.held_out)[-1]
    beyond = float(fit.held_out["flops"].iloc[-1] / fit.points["flops"].max())
    shown = large_numbers(
        (
            ("predicted", f"{row['predicted']:.4f}", ""),
            (f"{row['level']:.0%} interval", f"{row['low']:.3f} to {row['high']:.3f}", ""),
            ("measured", f"{row['measured']:.4f}", ""),
            ("relative error", f"{abs(row['relative_error']) * 100:.2g} %", "key"),
        )
    )
    text = (
        f"{compact(row['params'])} parameters, {compact(row['tokens'])} tokens: {beyond:.3g} times the compute of the "
        "largest run fitted. Losses are in nats per token."
    )
    return Section("forecast", "Forecast of a run that the fit did not see", "Forecast", paragraph(text, "") + shown)


def law_section(found: Evidence, drawn: Mapping[str, str]) -> Section:
    d = found.fit.document
    rows = [
        [
            Cell(escape(name), css="text"),
            Cell(f"{value:.5g}"),
            Cell(f"{d['standard_errors'][name]:.2g}"),
            Cell("{:.4g} to {:.4g}".format(*d["intervals"][name])),
        ]
        for name, value in {**found.fit.values, "exponent_a": d["exponent_a"]}.items()
    ]
    heads = ("parameter", "value", "standard error", f"{d['level']:.0%} interval")
    values = html.html_table(heads, rows, "Parameters of the law")
    body = _figures(drawn, "loss_by_tokens", "loss_by_params", "residuals", beside=values) or values
    return Section("law", "The law and the runs", "The law", body)


def surface_section(drawn: Mapping[str, str]) -> Section:
    body = _figures(drawn, "surface", "frontier", "isoflop")
    return Section("surface", "Loss surface and compute-optimal frontier", "Surface and frontier", body or _none(""))


def backtest_section(found: Evidence, drawn: Mapping[str, str]) -> Section:
    title = "Back-test: smaller runs forecast larger ones"
    if found.backtest.empty:
        return Section("backtest", title, "Back-test", _none(found.missing.get("backtest", "")))
    rows = []
    for (factor, law), part in found.backtest.groupby(["factor", "law"], sort=False):
        error = (part["predicted"] / part["measured"] - 1).abs().mean()
        inside = ((part["low_90"] <= part["measured"]) & (part["measured"] <= part["high_90"])).mean()
        name = f"{law}: {part['choice'].iloc[0]}" if law == CHOSEN else str(law)
        counts = (int(part["n_train"].iloc[0]), len(part))
        cells = [Cell(f"{factor:g}x", factor), Cell(escape(name), name, "text"), *(Cell(str(n), n) for n in counts)]
        rows.append([*cells, Cell(f"{error:.2%}", error), Cell(f"{inside:.0%}", inside)])
    heads = ("compute cut by", "law", "runs fitted", "runs forecast", "mean error", "inside 90% interval")
    table = html.html_table(heads, rows, "Back-test", sorts=True)
    return Section("backtest", title, "Back-test", _figures(drawn, "backtest_errors", "backtest_laws") + table)


def sensitivity_section(drawn: Mapping[str, str]) -> Section:
    body = _figures(drawn, "sensitivity") or _none("the fit holds no panel; `scaling fit` makes one unless --no-panel")
    return Section("sensitivity", "How the law moves when it is fitted otherwise", "Sensitivity", body)


def rates_section(found: Evidence, drawn: Mapping[str, str]) -> Section:
    how = found.fit.document.get("learning_rates", {})
    listed = "".join(f"<li>{count} runs: {escape(name)}</li>" for name, count in how.items())
    said = f"<p>How the learning rates of the fitted runs were found:</p><ul>{listed}</ul>" if how else ""
    why = "" if found.rate_law is not None else _none(found.missing.get("rates", ""))
    body = said + _figures(drawn, "rates_tried", "rates_used") + why
    return Section("rates", "Learning rates", "Learning rates", body)


def curves_section(found: Evidence, drawn: Mapping[str, str]) -> Section:
    body = _figures(drawn, "loss_curves", "collapse") or _none(found.missing.get("curves", ""))
    if found.collapse is not None and found.collapse.left_out:
        why = ", ".join(f"{count} {reason}" for reason, count in found.collapse.left_out.items())
        body += paragraph(f"Runs not compared: {why}.")
    return Section("curves", "Loss curves and their collapse", "Curves", body)


def downstream_section(found: Evidence, drawn: Mapping[str, str]) -> Section:
    title = "Downstream tasks"
    if not found.studies:
        return Section("downstream", title, "Downstream", _none(found.missing.get("downstream", "")))
    from analysis.downstream import study as downstream

    rows = []
    for study in found.studies:
        best = float(study.points["accuracy"].max())
        ahead = ""
        if study.model is not None:
            last = study.curve().iloc[-1]
            ahead = f"{last['predicted']:.3f} ({last['low']:.3f} to {last['high']:.3f})"
        law = "none" if study.trial is None else study.trial.best.name
        cells = [Cell(escape(text), text, "text") for text in (study.task, study.verdict)]
        cells += [Cell(f"{value:.3f}", value) for value in (study.chance, best, study.ceiling)]
        rows.append([*cells, Cell(escape(law), law, "text"), Cell(escape(ahead), ahead or None, "text")])
    ahead = f"at {downstream.BEYOND:g}x compute ({found.studies[0].level:.0%})"
    heads = ("task", "verdict", "chance", "best run", "ceiling", "law", ahead)
    table = html.html_table(heads, rows, title, sorts=True)
    table += "".join(paragraph(f"{task} has no study: {why}.") for task, why in found.not_studied.items())
    return Section(
        "downstream", title, "Downstream", table + _figures(drawn, *(n for n in drawn if n.startswith("downstream")))
    )


def checklist_section(asked: Sequence[Item]) -> Section:
    counts = Counter(item.answer for item in asked)
    rows = [
        [
            Cell(f'<span class="{item.answer}">{item.answer}</span>', item.answer, "text"),
            Cell(
                f"{escape(item.requirement)}<small>{html.with_code(item.evidence)}</small>", item.requirement, "prose"
            ),
        ]
        for item in asked
    ]
    counted = ", ".join(f"{counts[answer]} {answer}" for answer in ("yes", "no", "unknown"))
    said = f"{counted}, filled in from the files beside this page."
    table = html.html_table(
        ("answer", "what a good scaling study reports, and the evidence here"), rows, "Checklist", sorts=True
    )
    return Section("checklist", "What a good scaling study reports", "Checklist", paragraph(said) + table)


def _none(why: str) -> str:
    return paragraph(f"Nothing to show: {why.rstrip('.')}." if why else "Nothing to show.")
