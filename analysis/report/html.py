"""Builds a self-contained HTML page: tables that sort, and figures for light and dark backgrounds.

A figure is drawn with placeholder colours, and each placeholder becomes a variable of the style sheet with one value on
a light background, another on a dark one, and the light one in print. Text in figures stays text, so that the browser's
search finds it and it has the page's font. The page loads nothing from a network: the policy in its head forbids it.
"""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.collections import PathCollection
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from analysis.plots.style import DARK, LIGHT, WIDTH, Theme
from analysis.report.html_style import SCRIPT, STYLE
from analysis.terminal import printable

SHADES = 256
MAX_MARKS, MAX_LINES = 500, 200
"""The most points of one set, and curves of one axes, that a page draws: each takes a hundred bytes or more."""
PAGE = Theme(
    ink="#fd0001",
    faint="#fd0002",
    paper="#fd0003",
    accent="#fd0004",
    stretch=(0.0, 1.0),
    colours=ListedColormap([f"#fe{shade:04x}" for shade in range(SHADES)]),
)
"""Placeholder colours: `#fd....` for the named colours of a theme, `#fe....` for a place on its colour scale."""

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
_NAMED = {
    "ink": (LIGHT.ink, DARK.ink),
    "paper": (LIGHT.paper, DARK.paper),
    "faint": (LIGHT.faint, DARK.faint),
    "accent": (LIGHT.accent, DARK.accent),
    "soft": ("#5d626d", "#a0a5b0"),
    "rule": ("#e3e5ea", "#31353e"),
    "tint": ("#f5f6f8", "#1e2128"),
}
_PLACEHOLDERS = {getattr(PAGE, name): name for name in ("ink", "faint", "paper", "accent")}


@dataclass(frozen=True)
class Section:
    """A heading, and the HTML below it. key: its id; short: its name in the table of contents."""

    key: str
    title: str
    short: str
    body: str


@dataclass(frozen=True)
class Cell:
    """One cell of a table: its HTML, the value by which its column sorts (None and nan come last in both directions),
    and its class."""

    html: str
    value: float | str | None = None
    css: str = ""


def page_html(title: str, head: str, sections: Sequence[Section]) -> str:
    """The whole page, without control characters: some people print HTML on a terminal. head: HTML above the table of
    contents."""
    body = "".join(
        f'<section id="{part.key}" aria-labelledby="{part.key}-title"><h2 id="{part.key}-title">{escape(part.title)}'
        f"</h2>{part.body}</section>"
        for part in sections
    )
    contents = "".join(f'<li><a href="#{part.key}">{escape(part.short)}</a></li>' for part in sections)
    return printable(
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"><link rel="icon" href="data:,">'
        f"<style>{_palette(body)}{STYLE}</style></head><body>"
        f'<header><h1>{escape(title)}</h1>{head}</header><nav aria-label="Contents"><ul>{contents}</ul></nav>'
        f"<main>{body}</main><script>{SCRIPT}</script></body></html>\n"
    )


def escape(value: Any) -> str:
    return html.escape(str(value))


def with_code(text: str) -> str:
    """Plain text as HTML; text between backticks becomes code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def paragraph(text: str, css: str = "soft") -> str:
    """Plain text as a paragraph; text between backticks becomes code."""
    return f'<p class="{css}">{with_code(text)}</p>'


def large_numbers(rows: Iterable[tuple[str, str, str]]) -> str:
    """Large numbers with their names. rows: (name, text, "key" for the most important one, else "")."""
    cells = "".join(f'<div><dt>{escape(a)}</dt><dd class="{css}">{escape(b)}</dd></div>' for a, b, css in rows)
    return f'<dl class="numbers">{cells}</dl>'


def name_list(rows: Iterable[tuple[str, str]]) -> str:
    """A list of names and plain texts, beside one another or, on a narrow screen, below one another."""
    return f'<dl class="facts">{"".join(f"<dt>{escape(a)}</dt><dd>{with_code(b)}</dd>" for a, b in rows)}</dl>'


def html_table(
    heads: Sequence[str],
    rows: Iterable[Sequence[Cell]],
    name: str,
    *,
    sorts: bool = False,
    css: str = "",
    marks: Sequence[str] | None = None,
) -> str:
    """A table in a box that scrolls if the table is wider than the page.

    Args:
      heads: names of the columns, plain text. A column is aligned left if its cells have the class text or prose.
      name: what the table holds, for screen readers.
      sorts: whether a click on a head sorts the table.
      css: class of the box and the table.
      marks: class of each row. Default: none.
    """
    cells = [list(row) for row in rows]
    is_text = [bool(cells) and any(css in cells[0][i].css for css in ("text", "prose")) for i in range(len(heads))]
    head = "".join(_head(text, sorts, left) for text, left in zip(heads, is_text, strict=True))
    lines = zip(cells, marks or [""] * len(cells), strict=True)
    body = "".join(f"<tr{_class(mark)}>{''.join(_cell(c, sorts) for c in row)}</tr>" for row, mark in lines)
    return (
        f'<div class="wide {css}" tabindex="0" role="region" aria-label="{escape(name)}">'
        f"<table{_class(f'{css} sorts' if sorts else css)}><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def sample_evenly(parts: Iterable[np.ndarray], most: int) -> np.ndarray:
    """At most `most` places, sorted: from each part in turn as many as still fit, in equal steps."""
    sample = np.array([], int)
    for part in parts:
        room = min(len(part), most - len(sample))
        sample = np.concatenate([sample, part[np.linspace(0, len(part) - 1, room).astype(int)]])
    return np.sort(sample)


def thin_figure(drawn: Figure) -> str:
    """Removes points and curves from a figure, in equal steps, until each set has at most MAX_MARKS points and each
    axes at most MAX_LINES curves; thick curves stay first. Returns a note on what was removed, "" if nothing was."""
    notes = []
    for axes in drawn.axes:
        for marks in axes.collections:
            count = len(np.asarray(marks.get_offsets()))
            if isinstance(marks, PathCollection) and count > MAX_MARKS:
                sampled, colours = sample_evenly([np.arange(count)], MAX_MARKS), np.asarray(marks.get_facecolor())
                marks.set_offsets(np.asarray(marks.get_offsets())[sampled])
                if len(colours) == count:
                    marks.set_facecolor([(r, g, b, a) for r, g, b, a in colours[sampled].tolist()])
                notes.append(f"{MAX_MARKS} of {count:,} points are drawn")
        lines = list(axes.lines)
        if len(lines) > MAX_LINES:
            widths = np.array([line.get_linewidth() for line in lines])
            thick = widths > widths.min()
            sampled = sample_evenly([np.flatnonzero(thick), np.flatnonzero(~thick)], MAX_LINES)
            for at in np.setdiff1d(np.arange(len(lines)), sampled):
                lines[at].remove()
            notes.append(f"{MAX_LINES} of {len(lines):,} curves are drawn")
    return "; ".join(dict.fromkeys(notes))


def figure_block(draw: Callable[[Theme], Figure], key: str, caption: str) -> str:
    """A figure with its caption. A figure wider than the canvas takes a row of its own. On a narrow screen a figure
    scrolls: it does not shrink so far that its text cannot be read.

    key: makes the ids in the figure unique on the page.
    """
    drawn = draw(PAGE)
    if note := thin_figure(drawn):
        caption = f"{caption} Of many, here: {note}; the files in figures/ have all.".strip()
    is_broad = bool(drawn.get_figwidth() > 1.3 * WIDTH)
    inches = f'style="--inches:{drawn.get_figwidth():.2f}"'
    label = f'tabindex="0" role="region" aria-label="{escape(caption)}"'
    box = f'<div class="wide" {label}>{figure_to_svg(drawn, key, caption)}</div>'
    return f"<figure{_class('broad' * is_broad)} {inches}>{box}<figcaption>{escape(caption)}</figcaption></figure>"


def figure_to_svg(drawn: Figure, key: str, label: str) -> str:
    """A figure that was drawn with the theme PAGE, as SVG for a page: placeholder colours become variables of the style
    sheet, unused ids are removed, and coordinates are rounded."""
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": key, "svg.fonttype": "none"}):
        drawn.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.S)
    used = set(re.findall(r'(?:url\(|href=")#([^)"]+)', text))
    text = re.sub(r' id="([^"]+)"', lambda match: match[0] if match[1] in used else "", text)
    text = re.sub(r"<[^>]+>", lambda tag: re.sub(r"-?\d+\.\d{3,}", _round_coordinate, tag[0]), text)
    text = re.sub(r"#f[de][0-9a-f]{4}", lambda match: f"var(--{_variable(match[0])})", text)
    text = re.sub(r"\s*\n\s*", " ", text)
    return text.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1)


def _round_coordinate(number: re.Match[str]) -> str:
    """A coordinate in points, to two decimals."""
    return f"{float(number[0]):.2f}".rstrip("0").rstrip(".")


def _variable(placeholder: str) -> str:
    """The name of the style sheet's variable for a placeholder colour."""
    return _PLACEHOLDERS.get(placeholder) or f"c{int(placeholder[3:], 16)}"


def _palette(body: str) -> str:
    """The style sheet's variables of the colours that a page uses, on a light background and on a dark one; print uses
    the light ones."""
    shades = sorted({int(number) for number in re.findall(r"var\(--c(\d+)\)", body)})
    scale = {f"c{shade}": tuple(t.shade(shade / (SHADES - 1)) for t in (LIGHT, DARK)) for shade in shades}
    light, dark = (_variables({name: pair[side] for name, pair in (_NAMED | scale).items()}) for side in (0, 1))
    return f":root{{color-scheme:light dark;{light}}}@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}"


def _variables(colours: Mapping[str, str]) -> str:
    return "".join(f"--{name}:{colour};" for name, colour in colours.items())


def _class(css: str) -> str:
    return f' class="{css}"' if css else ""


def _head(text: str, sorts: bool, left: bool) -> str:
    css = _class("text" * left)
    if not sorts:
        return f'<th scope="col"{css}>{escape(text)}</th>'
    return f'<th scope="col" aria-sort="none"{css}><button type="button">{escape(text)}</button></th>'


def _cell(cell: Cell, sorts: bool) -> str:
    if not sorts:
        return f"<td{_class(cell.css)}>{cell.html}</td>"
    return f"<td{_class(cell.css)}{_raw(cell.value)}>{cell.html}</td>"


def _raw(value: float | str | None) -> str:
    """The attribute by which the script sorts: `data-n` for a number, as JavaScript writes it, and `data-v` for text,
    so that an id made of digits stays text; none for a missing value."""
    if isinstance(value, str):
        return f' data-v="{escape(value)}"'
    if value is None or math.isnan(value):
        return ""
    return f' data-n="{repr(float(value)).replace("inf", "Infinity")}"'
