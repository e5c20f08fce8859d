from __future__ import annotations

import re

import numpy as np
import pytest

from analysis.plots import style
from analysis.plots.style import DARK, LIGHT
from analysis.report import html
from analysis.report.html import PAGE, Cell, Section


def drawing(theme: style.Theme) -> style.Figure:
    with style.canvas("A drawing", theme) as (figure, (axes,)):
        axes.plot([0.001, 0.002], [1.23456, 2.34567], color=theme.shade(0.5))
        axes.scatter([0.0015], [1.5], color=theme.accent)
        axes.set(xlabel="rate (per step)", ylabel="loss (nats)", xticks=[0.001, 0.0015, 0.002])
    return figure


def test_a_figure_is_drawn_once_and_coloured_by_the_page() -> None:
    text = html.page_html("T", "", [Section("s", "S", "s", html.figure_block(drawing, "drawing", "what it shows"))])
    assert text.count("<svg") == 1
    assert not re.search(r"#f[de][0-9a-f]{4}", text), "no placeholder is left"
    used = set(re.findall(r"var\(--(\w+)\)", text)) - {"inches"}
    assert {"ink", "paper", "accent"} <= used
    light, dark = text.split("@media screen and (prefers-color-scheme:dark)", 1)
    for name in used:
        assert f"--{name}:#" in light
        assert f"--{name}:#" in dark
    shade = next(name for name in used if re.fullmatch(r"c\d+", name))
    assert f"--{shade}:{LIGHT.shade(int(shade[1:]) / 255)};" in light
    assert f"--{shade}:{DARK.shade(int(shade[1:]) / 255)};" in dark


def test_a_crowd_is_thinned_on_the_page_and_told() -> None:
    def crowd(theme: style.Theme) -> style.Figure:
        with style.canvas("A crowd", theme) as (figure, (axes,)):
            axes.scatter(np.arange(3000), np.arange(3000), c=style.colours_by_log(theme, np.arange(1, 3001), [1, 3000]))
            for at in range(1000):
                axes.plot([0, 1], [at, at], color=theme.accent if at == 777 else theme.ink, linewidth=1 + (at == 777))
        return figure

    figure = crowd(PAGE)
    said = html.thin_figure(figure)
    axes = figure.axes[0]
    marks = axes.collections[0]
    x = np.asarray(marks.get_offsets())[:, 0].astype(int)
    assert (x[0], x[-1], len(x)) == (0, 2999, html.MAX_MARKS)
    whole = np.asarray(crowd(PAGE).axes[0].collections[0].get_facecolor())
    np.testing.assert_array_equal(marks.get_facecolor(), whole[x])
    assert len(axes.lines) == html.MAX_LINES
    assert [line.get_ydata()[0] for line in axes.lines if line.get_linewidth() > 1] == [777], "what is marked stays"
    assert re.findall(r"[\d,]+", said) == ["500", "3,000", "200", "1,000"]
    assert said in html.figure_block(crowd, "crowd", "what it shows")
    assert html.thin_figure(drawing(PAGE)) == ""


def test_shades_of_the_page_are_places_of_the_scale() -> None:
    codes = [PAGE.shade(place) for place in np.linspace(0, 1, 41)]
    places = [int(code[3:], 16) / 255 for code in codes]
    np.testing.assert_allclose(places, np.linspace(0, 1, 41), atol=1 / 255)


def test_coordinates_are_shortened_and_words_are_not() -> None:
    text = html.figure_to_svg(drawing(PAGE), "drawing", "it")
    assert ">0.0015</text>" in text
    assert not re.search(r' d="[^"]*\.\d{3}', text)


def test_a_table_sorts_by_raw_values() -> None:
    rows = [[Cell("10k", 10_000.0), Cell("<b>x</b>", "x", "text")], [Cell(""), Cell("y", "y<z", "text")]]
    text = html.html_table(("size", "name"), rows, "Runs & more", sorts=True, marks=["held", ""])
    assert text.count('aria-sort="none"') == 2
    assert '<tr class="held"><td data-n="10000.0">10k</td><td class="text" data-v="x"><b>x</b></td></tr>' in text
    assert '<tr><td></td><td class="text" data-v="y&lt;z">y</td></tr>' in text
    assert 'aria-label="Runs &amp; more"' in text
    assert "button" not in html.html_table(("size", "name"), rows, "Runs")


@pytest.mark.parametrize("value", [float("nan"), None])
def test_what_is_missing_has_no_value(value: float | None) -> None:
    assert "<td></td>" in html.html_table(("x",), [[Cell("", value)]], "x", sorts=True)


@pytest.mark.parametrize(
    ("value", "attribute"),
    [("12", 'data-v="12"'), ("1e5", 'data-v="1e5"'), (12, 'data-n="12.0"'), (float("-inf"), 'data-n="-Infinity"')],
)
def test_text_of_digits_stays_text_and_an_infinity_is_a_number(value: float | str, attribute: str) -> None:
    assert f"<td {attribute}>x</td>" in html.html_table(("x",), [[Cell("x", value)]], "x", sorts=True)


def test_code_stands_between_backticks() -> None:
    assert html.paragraph("use `a < b` now", "") == '<p class="">use <code>a &lt; b</code> now</p>'


def test_the_page_forbids_itself_the_network() -> None:
    text = html.page_html("T", "", [])
    assert "default-src 'none'" in text
    assert '<link rel="icon" href="data:,">' in text


def test_a_hostile_name_is_text() -> None:
    name = "<script>alert(1)</script>\x1b[2J\udcff"
    facts = html.paragraph(name) + html.escape(name) + html.with_code(f"`{name}`")
    text = html.page_html(name, facts, [Section("s", name, name, "")])
    assert text.count("<script>") == 1, "the page's own"
    assert text.count("&lt;script&gt;alert(1)&lt;/script&gt;\\x1b[2J\\udcff") == 7
    assert text.encode().isascii()
