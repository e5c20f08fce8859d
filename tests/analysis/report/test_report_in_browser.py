"""The report in a real browser. Skips if there is no Chromium."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from analysis.report.html import Cell, Section, html_table, page_html
from analysis.report.runs_table import ROLE_LABELS
from tests.support.browser import BrowserUnavailable, fetch_chromium, find_chromium, open_browser

PHONE = {"width": 390, "height": 844}
DESK = {"width": 1280, "height": 900}


@pytest.fixture(scope="module")
def running() -> Iterator[Any]:
    try:
        with open_browser(find_chromium()) as started:
            yield started
    except BrowserUnavailable as reason:
        pytest.skip(str(reason))


@contextmanager
def opened(running: Any, path: Path, scheme: str = "light", size: dict[str, int] = DESK) -> Iterator[Any]:
    """Opens the page at a size, in the light or dark theme; fails if it requests another URL or logs an error."""
    context = running.new_context(color_scheme=scheme, viewport=size)
    page, said, asked = context.new_page(), [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    yield page
    assert said == []
    assert asked == [path.as_uri()]
    context.close()


@pytest.fixture(scope="module")
def path(reported: Path) -> Path:
    return reported / "report.html"


def column(page: Any, at: int, table: str = "#runs") -> list[str]:
    return page.locator(f"{table} tbody tr td:nth-child({at})").all_inner_texts()


def head(page: Any, name: str) -> tuple[Any, int]:
    """The button of a column of the table of runs, and the number of that column, from 1."""
    heads = [text.strip() for text in page.locator("#runs thead th").all_inner_texts()]
    at = heads.index(name)
    return page.locator("#runs thead button").nth(at), at + 1


def amount(text: str) -> float:
    """The value of a displayed number such as 10k, 1.2×10¹⁰ or 2.31 ± 0.01."""
    superscripts = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")
    digits, _, power = text.split(" ")[0].partition("×10")
    if not power and digits.startswith("10") and digits[2:3] in "⁰¹²³⁴⁵⁶⁷⁸⁹" and len(digits) > 2:
        digits, power = "1", digits[2:]
    unit = {"k": 1e3, "M": 1e6, "B": 1e9}.get(digits[-1], 1.0)
    return float(digits.rstrip("kMB")) * unit * 10 ** int(power.translate(superscripts) or 0 if power else 0)


def test_the_page_asks_for_nothing_and_says_nothing(running: Any, path: Path) -> None:
    assert path.stat().st_size < 2_000_000
    for scheme in ("light", "dark"):
        with opened(running, path, scheme) as page:
            assert "made" in page.title()


@pytest.mark.parametrize("name", ["tokens", "flops", "loss", "learning rate"])
def test_numbers_sort_as_numbers_and_the_other_way_at_the_second_click(running: Any, path: Path, name: str) -> None:
    with opened(running, path) as page:
        button, at = head(page, name)
        before = column(page, at)
        button.click()
        up = [amount(text) for text in column(page, at) if text]
        assert up == sorted(up)
        assert page.locator("#runs thead th").nth(at - 1).get_attribute("aria-sort") == "ascending"
        button.click()
        down = column(page, at)
        assert [amount(text) for text in down if text] == up[::-1]
        assert page.locator("#runs thead th").nth(at - 1).get_attribute("aria-sort") == "descending"
        assert page.locator("#runs th[aria-sort=none]").count() == page.locator("#runs th").count() - 1
        assert sorted(down) == sorted(before), "every run is still there"
        if "" in down:
            assert down[-1] == "", "runs without a number come last, either way"


def test_sorting_by_keyboard_and_by_text(running: Any, path: Path) -> None:
    with opened(running, path) as page:
        button, at = head(page, "run")
        button.focus()
        page.keyboard.press("Enter")
        page.keyboard.press("Space")
        runs = column(page, at)
        assert runs == sorted(runs, reverse=True)
        assert runs[0] == "run20"
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        parts = column(page, at + 1)
        assert parts.index(ROLE_LABELS["held"]) > parts.index(ROLE_LABELS["fitted"]), "Tab goes to the next head"


def test_text_of_digits_sorts_as_text_and_infinities_as_numbers(running: Any, tmp_path: Path) -> None:
    words = ["9", "123456", "1e999", "2e3", "abc", "0x11"]
    values = [2.0, float("inf"), 10.0, float("-inf"), float("nan"), float("inf")]
    rows = [[Cell(word, word), Cell(str(value), value)] for word, value in zip(words, values, strict=True)]
    text = html_table(("run", "x"), rows, "Runs", sorts=True)
    file = tmp_path / "page.html"
    file.write_text(page_html("T", "", [Section("runs", "Runs", "Runs", text)]), encoding="utf-8")
    with opened(running, file) as page:
        button, at = head(page, "run")
        button.click()
        assert column(page, at) == sorted(words)
        button, at = head(page, "x")
        button.click()
        assert column(page, at) == ["-inf", "2.0", "10.0", "inf", "inf", "nan"]
        button.click()
        assert column(page, at) == ["inf", "inf", "10.0", "2.0", "-inf", "nan"]


def test_what_is_wrong_with_a_run_is_told_in_words(running: Any, path: Path) -> None:
    with opened(running, path) as page:
        flags = column(page, head(page, "flags")[1])
        assert sorted(text.lstrip("⚑ ") for text in set(flags)) == ["", "failed", "off_collapse"]
        assert any(text.endswith("failed") for text in column(page, head(page, "status")[1]))


def test_dark_paper_is_dark_and_print_is_light(running: Any, path: Path) -> None:
    colours = "[document.body, document.querySelector('#law svg path')].map(e => getComputedStyle(e))"
    shade = "[getComputedStyle(document.querySelector('#law svg [style*=\"--c\"]'))].map(s => s.fill + s.stroke)[0]"
    asked = f"{colours}.map((style, at) => at ? style.fill : style.backgroundColor)"
    with opened(running, path, "light") as page:
        light = page.evaluate(asked)
        shades = page.evaluate(shade)
    with opened(running, path, "dark") as page:
        dark = page.evaluate(asked)
        assert shades != page.evaluate(shade)
        page.emulate_media(media="print", color_scheme="dark")
        assert page.evaluate(asked) == light
    assert light == ["rgb(255, 255, 255)"] * 2
    assert dark == ["rgb(22, 24, 29)"] * 2, "a figure's paper is that of the page"


def test_a_phone_scrolls_no_page_sideways_and_shows_legible_figures(running: Any, path: Path) -> None:
    with opened(running, path, size=PHONE) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        sizes = page.evaluate("[...document.querySelectorAll('svg text')].map(t => t.getBoundingClientRect().height)")
        assert len(sizes) > 100
        assert min(size for size in sizes if size) >= 8.0
        boxes = page.evaluate("[...document.querySelectorAll('.wide')].map(box => box.getBoundingClientRect().right)")
        assert max(boxes) <= PHONE["width"]


def test_figures_hold_their_text_in_the_page_font(running: Any, path: Path) -> None:
    """Labels are text and stay inside their figure in wider and narrower fonts."""
    outside = """[...document.querySelectorAll('figure svg')].flatMap(svg => {
        const box = svg.getBoundingClientRect();
        return [...svg.querySelectorAll('text')].filter(t => {
            const b = t.getBoundingClientRect();
            return b.width && (b.left < box.left - 1 || b.right > box.right + 1 || b.bottom > box.bottom + 1);
        }).map(t => t.textContent);
    })"""
    with opened(running, path) as page:
        assert page.evaluate(outside) == []


def test_a_browser_that_cannot_be_fetched_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(BrowserUnavailable):
        fetch_chromium(tmp_path)
    assert list(tmp_path.iterdir()) == []
