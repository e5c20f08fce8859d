from __future__ import annotations

import json
import re
import shlex
import shutil
from dataclasses import replace
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis import files
from analysis.downstream.study import studies
from analysis.errors import TableError
from analysis.forecasting import backtest, law_choice, saved_fit
from analysis.report import checklist, evidence, figures, report, runs_table
from analysis.report.evidence import Evidence
from analysis.tables import results
from tests.support import reported as made
from tests.support.figure_style import follows_the_style

FIGURES = {
    *("loss_by_tokens", "loss_by_params", "surface", "isoflop", "frontier", "residuals", "sensitivity"),
    *("backtest_errors", "backtest_laws", "rates_tried", "rates_used", "loss_curves", "collapse"),
}
SECTIONS = (
    *("forecast", "law", "surface", "backtest", "sensitivity", "rates", "curves", "downstream"),
    *("checklist", "runs", "provenance"),
)


@pytest.fixture(scope="module")
def gathered(reported: Path) -> Evidence:
    return evidence.gather(reported)


class Page(HTMLParser):
    """Tags, attributes and text of a page; fails on a closing tag that does not match the last open one."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.sections: dict[str, str] = {}
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "section":
            self.sections[dict(attrs)["id"] or ""] = ""
        if tag not in ("meta", "br", "img", "link"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        if "section" in self.open:
            self.sections[[*self.sections][-1]] += f"{data} "

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def text(reported: Path) -> str:
    return (reported / "report.html").read_text()


def test_the_page_tells_law_forecast_runs_and_provenance(reported: Path, text: str) -> None:
    fit = saved_fit.read_fit(reported / "fit.json")
    forecast = fit.forecast(fit.held_out)[0]
    page = Page(text)
    for expected in (
        fit.describe(),
        f"{forecast['predicted']:.4f}",
        f"{forecast['measured']:.4f}",
        f"{abs(forecast['relative_error']) * 100:.2g} %",
        fit.document["table"]["sha256"],
        *(f"run{i:02}" for i in range(21)),
        *("1 failed", "1 off_collapse", "c0ffee" * 6, "abacus", "jax 9.9.9"),
        *("scaling data prepare tales", "scaling sweep run made", "--law chinchilla --holdout largest"),
    ):
        assert expected in page.text
    assert re.search(r"\b2\b.{1,9}\b21\b.*\b1 failed", page.text), "flagged"
    held_out_rows = [
        i for i, (tag, attributes) in enumerate(page.tags) if tag == "tr" and attributes.get("class") == "held"
    ]
    assert len(held_out_rows) == 1
    assert re.search(r'<tr class="held"><td class="text" data-v="run19">', text)


def test_every_section_is_there_and_in_the_contents(text: str) -> None:
    page = Page(text)
    assert tuple(a["id"] for tag, a in page.tags if tag == "section") == SECTIONS
    assert [a["href"] for tag, a in page.tags if tag == "a"][-len(SECTIONS) :] == [f"#{key}" for key in SECTIONS]


def test_figures_are_on_the_page_and_in_files(reported: Path, text: str) -> None:
    wanted = {f"{name}.{kind}" for name in FIGURES for kind in ("svg", "png")}
    assert {path.name for path in (reported / "figures").iterdir()} == wanted
    assert all(path.stat().st_size > 5_000 for path in (reported / "figures").iterdir())
    page = Page(text)
    labels = [a["aria-label"] for tag, a in page.tags if tag == "svg"]
    assert sorted(labels) == sorted(figures.CAPTIONS[name] for name in FIGURES), "one drawing for both papers"
    named = re.findall(r"(run\d+): 30k, 2M", page.sections["curves"])
    assert set(named) == {"run05"}, "off the collapse, named directly"
    assert "run04" not in page.sections["curves"]


def test_what_the_verb_writes_for_machines(reported: Path) -> None:
    facts = json.loads((reported / "report.json").read_text())
    assert len(facts["figures"]) == 2 * len(FIGURES)
    answers = {item["key"]: item["answer"] for item in facts["checklist"]}
    assert (answers["held-out"], answers["seeds"], answers["downstream"]) == ("yes", "no", "no")


@pytest.mark.parametrize("name", sorted(FIGURES))
def test_every_figure_of_the_page_follows_the_style(gathered: Evidence, name: str) -> None:
    with_held_out = {"loss_by_tokens", "loss_by_params", "surface", "frontier", "residuals", "backtest_errors"}
    figure = figures.available_figures(gathered)[name](report.style.LIGHT)
    follows_the_style(figure, intervals=name not in ("rates_tried", "loss_curves"), held_out=name in with_held_out)


def test_the_page_needs_nothing_from_elsewhere(text: str) -> None:
    page = Page(text)
    assert len(text) < 2_000_000
    assert not [tag for tag, _ in page.tags if tag in ("img", "iframe", "object")]
    for tag, attributes in page.tags:
        for name in ("src", "href", "xlink:href"):
            value = attributes.get(name) or "#"
            assert value.startswith("#") or (tag, value) == ("link", "data:,"), attributes
    assert not re.findall(r"url\((?!#)|@import", text)


def test_ids_are_unique(text: str) -> None:
    """A clip path of one figure must not cut another."""
    assert re.findall(r"url\(#([^)]+)\)", text)
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(set(ids)) == len(ids)


def test_what_a_run_says_is_escaped(text: str) -> None:
    assert "&lt;b&gt;out of memory &amp; time&lt;/b&gt;" in text
    assert "<b>out of memory" not in text


@pytest.fixture
def fit_folder(reported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with only the fit and its table, for tests to change. No figure is drawn, to save time."""
    for name in ("results.parquet", "fit.json"):
        shutil.copy(reported / name, tmp_path)
    monkeypatch.setattr(report, "available_figures", lambda _: {})
    monkeypatch.setattr(evidence.backtest, "backtest_forecasts", lambda *_, **__: pd.DataFrame())
    return tmp_path


def test_sections_without_anything_to_show_say_why(fit_folder: Path) -> None:
    sections = Page(report.write_report(fit_folder)[0].read_text()).sections
    missing = evidence.gather(fit_folder).missing
    assert set(missing) == {"backtest", "curves", "downstream", "rates"}
    for section, why in missing.items():
        assert why.rstrip(".").replace("`", "") in " ".join(sections[section].split())
    assert "scaling eval" in missing["downstream"]
    assert "--scans FILE" in missing["rates"]


def test_the_page_stands_without_the_table(fit_folder: Path) -> None:
    whole = Page(report.write_report(fit_folder)[0].read_text()).sections["provenance"]
    (fit_folder / "results.parquet").unlink()
    written = report.write_report(fit_folder)
    page = Page(written.path.read_text())
    assert "run11" in page.text
    assert made.FAILED_RUN not in page.text
    assert page.sections["provenance"] != whole, "which says so"
    assert {item.key: item.answer for item in written.checklist}["table"] == "no"


def test_a_table_that_changed_since_the_fit_is_told(fit_folder: Path) -> None:
    before = report.write_report(fit_folder)
    unchanged = Page(before.path.read_text()).sections
    results.write_table(made.planted_table().assign(note="later"), fit_folder)
    after = report.write_report(fit_folder)
    changed = Page(after.path.read_text()).sections
    answers = [{item.key: item.answer for item in written.checklist}["table"] for written in (before, after)]
    assert answers == ["yes", "no"]
    assert changed["checklist"] != unchanged["checklist"]
    assert changed["provenance"] != unchanged["provenance"]
    assert evidence.gather(fit_folder).table_unchanged is False


def test_a_foreign_table_of_three_columns_has_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from analysis.commands import fit as verbs

    monkeypatch.setattr(report, "available_figures", lambda _: {})
    monkeypatch.setattr(evidence.backtest, "backtest_forecasts", lambda *_, **__: pd.DataFrame())
    made.planted_table().dropna(subset="loss")[["params_matmul", "tokens", "loss"]].to_csv(
        tmp_path / "runs.csv", index=False
    )
    verbs.fit(tmp_path / "runs.csv", columns="params=params_matmul", draws=16, panel=False)
    path, _, items, failed = report.write_report(tmp_path)
    assert failed == {}
    sections = Page(path.read_text()).sections
    assert "--holdout largest" in sections["forecast"], "what to do for one that is checked"
    assert "--no-panel" in sections["sensitivity"]
    answers = {item.key: item.answer for item in items}
    assert (answers["counting"], answers["held-out"], answers["otherwise"]) == ("unknown", "no", "no")
    assert "row 1" in sections["runs"]


def test_a_fit_of_some_rows_of_a_foreign_table_is_made_again_by_its_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from scaling import cli

    rows = made.planted_table().dropna(subset="loss")[["params_matmul", "tokens", "loss", "seed"]]
    rows = rows.rename(columns={"params_matmul": "its size"})
    other = rows.assign(corpus="b", loss=rows["loss"] + 1, seed=5)
    pd.concat([other, rows.assign(corpus="it's a")]).to_csv(tmp_path / "runs.csv", index=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(evidence.backtest, "backtest_forecasts", lambda *_, **__: pd.DataFrame())
    monkeypatch.setattr(saved_fit, "choose", partial(law_choice.choose, candidates=law_choice.CANDIDATES[:1]))
    flags = ["--columns", "params=its size", "--where", 'corpus=="it\'s a"', "--fix", "E=1.5", "--seed", "3"]
    flags += ["--bound", "alpha=0.1:inf,beta=0.2:0.8", "--delta", "0.002", "--draws", "8", "--no-panel"]

    def fitted(*arguments: str) -> Evidence:
        with pytest.raises(SystemExit) as exit_info:
            cli.main(["fit", *arguments])
        assert exit_info.value.code == 0
        return evidence.gather(tmp_path)

    first = fitted("runs.csv", *flags)
    assert set(first.table["corpus"]) == {"it's a"}
    assert re.search(r"\b20\b", {item.key: item.evidence for item in checklist.fill_checklist(first)}["table"])
    command, _ = runs_table.commands_to_reproduce(first)
    (tmp_path / "fit.json").unlink()
    again = fitted(*shlex.split(command)[2:], "--no-panel")
    assert again.fit.document == first.fit.document
    assert runs_table.commands_to_reproduce(again)[0] == command


def test_of_many_runs_those_of_note_are_listed_and_it_is_said(
    gathered: Evidence, monkeypatch: pytest.MonkeyPatch
) -> None:
    above = re.compile(r"<p.*?</p>", re.S)
    whole = "".join(above.findall(runs_table.runs_section(gathered).body))
    monkeypatch.setattr(runs_table, "MAX_ROWS", 8)
    body = runs_table.runs_section(gathered).body
    listed = re.findall(r'data-v="(run\d+)"', body)
    assert {"run19", made.FAILED_RUN, made.OUTLIER_RUN} < set(listed), "held out, failed, flagged"
    others = [run for run in gathered.table["run_id"] if run not in ("run19", made.FAILED_RUN, made.OUTLIER_RUN)]
    assert {others[0], others[-1]} < set(listed), "the others from end to end"
    assert len(listed) == 8
    assert body.count('<tr class="held">') == 1
    summary = "".join(above.findall(body))
    assert re.search(r"\b8\b.*\b21\b", summary), "how many of how many"
    assert "21" not in whole
    monkeypatch.setattr(runs_table, "MAX_ROWS", 2)
    assert "run19" in re.findall(r'data-v="(run\d+)"', runs_table.runs_section(gathered).body)


def test_a_fit_from_before_its_settings_were_told_has_a_page(fit_folder: Path) -> None:
    document = json.loads((fit_folder / "fit.json").read_text())
    assert {"columns", "where"} <= set(document["table"])
    document["table"] = {name: document["table"][name] for name in ("path", "sha256")}
    del document["settings"]
    (fit_folder / "fit.json").write_text(json.dumps(document))
    text = Page(report.write_report(fit_folder)[0].read_text(encoding="utf-8")).text
    assert "scaling fit results.parquet --law chinchilla --holdout largest --draws 64 scaling report ." in text


def test_what_cannot_be_made_is_told_in_its_place_and_on_stderr(
    fit_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from analysis.commands import report as report_

    def broken(*_: object) -> Any:
        raise IndexError("index 3 <out>")

    def refused(*_: object) -> Any:
        raise TableError("no such column")

    monkeypatch.setattr(report, "available_figures", lambda _: {"surface": broken, "frontier": refused})
    monkeypatch.setattr(report, "backtest_section", broken)
    monkeypatch.setattr(report, "headline", broken)
    monkeypatch.setattr(evidence.learning_rate_law, "find_scans", broken)
    judges = [(key, what, broken if key == "seeds" else judge) for key, what, judge in checklist.CHECKLIST]
    monkeypatch.setattr(checklist, "CHECKLIST", judges)
    page = Page(report_.report(fit_folder, json=fit_folder / "report.json").read_text(encoding="utf-8"))
    why = "IndexError: index 3 <out>"
    for part in ("surface", "backtest", "rates", "checklist"):
        assert why in page.sections[part]
    assert "no such column" in page.sections["surface"], "the figure frontier"
    assert page.text.count(why) > sum(text.count(why) for text in page.sections.values()), "the headline"
    assert "run19" in page.text
    facts = json.loads((fit_folder / "report.json").read_text())
    failed = ("rates", "figure surface", "checklist seeds", "section backtest", "headline")
    assert facts["failed"] == dict.fromkeys(failed, why)
    assert next(item for item in facts["checklist"] if item["key"] == "seeds")["evidence"] == why
    stderr_text = capsys.readouterr().err
    assert [f"{part}: {why}" in stderr_text for part in failed] == [True] * 5
    assert "no such column" not in stderr_text, "a TableError is a note on the page alone"


def _odd(table: pd.DataFrame) -> pd.DataFrame:
    """The table with impossible numbers in columns that the fit does not use, and text or nothing for numbers."""
    odd = table.assign(learning_rate=table["learning_rate"].astype(object), bits_per_byte=np.inf, loss_stderr=-np.inf)
    odd.loc[0, "learning_rate"] = "0.1 (tuned)"
    return odd.assign(unique_tokens=0, seed=np.nan, schedule=None, flags=np.nan)


@pytest.mark.slow
def test_an_odd_table_has_a_whole_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from analysis.commands import fit as verbs

    monkeypatch.setattr(saved_fit, "choose", partial(law_choice.choose, candidates=law_choice.CANDIDATES[:1]))
    few = {"factors": backtest.FACTORS[:1], "plain": backtest.PLAIN[:1], "candidates": law_choice.CANDIDATES[:1]}
    monkeypatch.setattr(evidence.backtest, "backtest_forecasts", partial(backtest.backtest_forecasts, **few))
    _odd(made.planted_table()).to_csv(tmp_path / "runs.csv", index=False)
    verbs.fit(tmp_path / "runs.csv", draws=8, panel=False)
    written = report.write_report(tmp_path)
    assert written.failed == {}
    text = written.path.read_text(encoding="utf-8")
    assert 'class="warning"><strong>Parts' not in text
    assert tuple(Page(text).sections) == SECTIONS
    assert "--holdout largest" in Page(text).sections["forecast"]


def test_scans_that_are_named_are_read(fit_folder: Path, tmp_path: Path) -> None:
    from analysis.fitting import learning_rate_law

    law = learning_rate_law.fit_rate_law(learning_rate_law.find_scans(made.scan_table()))
    file = files.write_json(tmp_path / "rates.json", learning_rate_law.rate_document(law, "made", "x"))
    read = evidence.gather(fit_folder, file).rate_law
    assert read is not None
    np.testing.assert_allclose(read(SIZES), law(SIZES), rtol=1e-3)
    assert [scan.name for scan in read.scans] == [scan.name for scan in law.scans]
    file.write_text("{}")
    with pytest.raises(TableError, match=r"rates\.json"):
        evidence.gather(fit_folder, file)


SIZES = np.array(made.SIZES)


def test_a_law_of_other_columns_is_refused_in_a_line(fit_folder: Path) -> None:
    document = json.loads((fit_folder / "fit.json").read_text())
    (fit_folder / "fit.json").write_text(json.dumps({**document, "law": "m2"}))
    with pytest.raises(TableError, match=r"fit\.json.*\balpha\b.*\bm2\b"):
        report.write_report(fit_folder)
    assert not (fit_folder / "report.html").exists()


def test_a_folder_without_a_fit_is_named(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"fit\.json"):
        report.write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_tasks_are_judged_as_by_the_verb_and_those_that_cannot_be_are_named(
    gathered: Evidence, reported: Path, tmp_path: Path
) -> None:
    generator = np.random.default_rng(0)
    table = made.planted_table().assign(**{"t/chance": 0.25, "t/accuracy_stderr": 0.01, "few/chance": 0.25})
    table["t/accuracy"] = 0.3 + 0.01 * generator.standard_normal(len(table))
    table["few/accuracy"] = table["t/accuracy"].where(table["run_id"] < "run03")
    run_folder = tmp_path / "runs" / "run00"
    run_folder.mkdir(parents=True)
    line = {"schema": 1, "task": "t"}
    scatter = [line | {"step": i, "tokens": i, "measurements": {"t/accuracy": [0.4 + 0.2 * (-1) ** i, 9, 0.1]}}
               for i in range(1, 6)]  # fmt: skip
    (run_folder / "evaluations.jsonl").write_text("\n".join(map(json.dumps, scatter)))
    results.write_table(table, tmp_path)
    document = gathered.fit.document | {"table": {**gathered.fit.document["table"], "path": "results.parquet"}}
    (tmp_path / "fit.json").write_text(json.dumps(document))
    evident = evidence.gather(tmp_path, draws=20)
    assert [(study.task, study.trend.noise_source) for study in evident.studies] == [("t", "scatter of checkpoints")]
    section = report.downstream_section(evident, {}).body
    assert set(evident.not_studied) == {"few"}
    assert evident.not_studied["few"] in section
    assert re.search(r"\b2\b", evident.not_studied["few"]), "runs have it"
    unknown = replace(evident, studies=tuple(studies(table.drop(columns="t/accuracy_stderr"), ["t"])))
    assert {"downstream_by_compute", "downstream_signal"} <= set(figures.available_figures(evident))
    assert "downstream_signal" not in figures.available_figures(unknown)
    (verdict,) = {study.verdict for study in unknown.studies}
    assert verdict not in section
    assert verdict in report.downstream_section(unknown, {}).body
