"""The parts of a self-contained HTML page: tables that sort, figures for light and dark paper.

A figure is drawn with placeholders for colours, and each placeholder becomes a variable of the style sheet, which has
one value on light paper, another on dark, and the light one in print. Text in figures stays text: it is found by the
browser's search, and takes the page's font. Nothing is asked of any network: the policy in the head forbids it.

Not in the design's list of modules: how a page is made is one concept, what `scaling report` says on it another.
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

SHADES = 256
MAX_MARKS, MAX_LINES = 500, 200
"""Points of one set, and curves of one axes, that a page draws: each takes a hundred bytes and more."""
PAGE = Theme(
    ink="#fd0001",
    faint="#fd0002",
    paper="#fd0003",
    accent="#fd0004",
    stretch=(0.0, 1.0),
    colours=ListedColormap([f"#fe{shade:04x}" for shade in range(SHADES)]),
)
"""Draws placeholders: `#fd....` for what a theme names, `#fe....` for a place of its scale."""

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
    """One heading and what stands under it, which is HTML already; `short` is its name in the table of contents."""

    key: str
    title: str
    short: str
    body: str


@dataclass(frozen=True)
class Cell:
    """One cell of a table: HTML, and the raw value by which its column sorts, numbers or text; None and NaN sort last
    either way."""

    html: str
    value: float | str | None = None
    css: str = ""


def page_html(title: str, head: str, sections: Sequence[Section]) -> str:
    """The whole page. head: HTML above the table of contents."""
    body = "".join(
        f'<section id="{part.key}" aria-labelledby="{part.key}-title"><h2 id="{part.key}-title">{escape(part.title)}'
        f"</h2>{part.body}</section>"
        for part in sections
    )
    contents = "".join(f'<li><a href="#{part.key}">{escape(part.short)}</a></li>' for part in sections)
    return (
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
    """Plain text as HTML; what stands between backticks is code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def paragraph(text: str, css: str = "soft") -> str:
    """Plain text as a paragraph; what stands between backticks is code."""
    return f'<p class="{css}">{with_code(text)}</p>'


def large_numbers(rows: Iterable[tuple[str, str, str]]) -> str:
    """Large numbers with their names: (name, text, "key" for the one that matters most or "")."""
    cells = "".join(f'<div><dt>{escape(a)}</dt><dd class="{css}">{escape(b)}</dd></div>' for a, b, css in rows)
    return f'<dl class="numbers">{cells}</dl>'


def name_list(rows: Iterable[tuple[str, str]]) -> str:
    """Names and what is said of them, in plain text: beside one another, or on a phone below."""
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
    """A table in a box of its own, which scrolls where the table is wider than the page.

    Args:
      heads: names of columns, plain text. A column of text is aligned left where its cells say so.
      name: what the table holds, for those who hear it.
      sorts: whether its heads are buttons that sort it.
      marks: class of each row.
    """
    listed = [list(row) for row in rows]
    left = [bool(listed) and any(word in listed[0][at].css for word in ("text", "prose")) for at in range(len(heads))]
    head = "".join(_head(text, sorts, is_left) for text, is_left in zip(heads, left, strict=True))
    lines = zip(listed, marks or [""] * len(listed), strict=True)
    body = "".join(f"<tr{_class(mark)}>{''.join(_cell(c, sorts) for c in row)}</tr>" for row, mark in lines)
    return (
        f'<div class="wide {css}" tabindex="0" role="region" aria-label="{escape(name)}">'
        f"<table{_class(f'{css} sorts' if sorts else css)}><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def sample_evenly(parts: Iterable[np.ndarray], most: int) -> np.ndarray:
    """At most so many places, sorted: of each part in turn as many as there is room left for, in equal steps."""
    kept = np.array([], int)
    for part in parts:
        room = min(len(part), most - len(kept))
        kept = np.concatenate([kept, part[np.linspace(0, len(part) - 1, room).astype(int)]])
    return np.sort(kept)


def thin_figure(drawn: Figure) -> str:
    """Leaves of each set of points at most MOST_MARKS, of each axes' curves MOST_LINES, in equal steps, the thicker
    ones first. Returns what to say of it, "" where nothing was left out."""
    said = []
    for axes in drawn.axes:
        for marks in axes.collections:
            count = len(np.asarray(marks.get_offsets()))
            if isinstance(marks, PathCollection) and count > MAX_MARKS:
                kept, colours = sample_evenly([np.arange(count)], MAX_MARKS), np.asarray(marks.get_facecolor())
                marks.set_offsets(np.asarray(marks.get_offsets())[kept])
                if len(colours) == count:
                    marks.set_facecolor([(r, g, b, a) for r, g, b, a in colours[kept].tolist()])
                said.append(f"{MAX_MARKS} of {count:,} points are drawn")
        lines = list(axes.lines)
        if len(lines) > MAX_LINES:
            widths = np.array([line.get_linewidth() for line in lines])
            thick = widths > widths.min()
            kept = sample_evenly([np.flatnonzero(thick), np.flatnonzero(~thick)], MAX_LINES)
            for at in np.setdiff1d(np.arange(len(lines)), kept):
                lines[at].remove()
            said.append(f"{MAX_LINES} of {len(lines):,} curves are drawn")
    return "; ".join(dict.fromkeys(said))


def figure_block(draw: Callable[[Theme], Figure], key: str, caption: str) -> str:
    """A figure with its caption. One wider than the canvas takes a row for itself; no figure shrinks so far that
    its text is lost, but scrolls on a phone."""
    drawn = draw(PAGE)
    if thinned := thin_figure(drawn):
        caption = f"{caption} Of many, here: {thinned}; the files in figures/ have all.".strip()
    broad = bool(drawn.get_figwidth() > 1.3 * WIDTH)
    inches = f'style="--inches:{drawn.get_figwidth():.2f}"'
    said = f'tabindex="0" role="region" aria-label="{escape(caption)}"'
    box = f'<div class="wide" {said}>{figure_to_svg(drawn, key, caption)}</div>'
    return f"<figure{_class('broad' * broad)} {inches}>{box}<figcaption>{escape(caption)}</figcaption></figure>"


def figure_to_svg(drawn: Figure, key: str, label: str) -> str:
    """A figure drawn with `PAGE` as SVG within HTML: colours as variables, ids that no other figure has."""
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": key, "svg.fonttype": "none"}):
        drawn.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.S)
    used = set(re.findall(r'(?:url\(|href=")#([^)"]+)', text))
    text = re.sub(r' id="([^"]+)"', lambda found: found[0] if found[1] in used else "", text)
    text = re.sub(r"<[^>]+>", lambda tag: re.sub(r"-?\d+\.\d{3,}", _short, tag[0]), text)
    text = re.sub(r"#f[de][0-9a-f]{4}", lambda found: f"var(--{_variable(found[0])})", text)
    text = re.sub(r"\s*\n\s*", " ", text)
    return text.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1)


def _short(number: re.Match[str]) -> str:
    """A coordinate, in points, to the hundredth."""
    return f"{float(number[0]):.2f}".rstrip("0").rstrip(".")


def _variable(placeholder: str) -> str:
    return _PLACEHOLDERS.get(placeholder) or f"c{int(placeholder[3:], 16)}"


def _palette(body: str) -> str:
    """The colours that a page uses, on light paper and on dark; in print, on light."""
    shades = sorted({int(found) for found in re.findall(r"var\(--c(\d+)\)", body)})
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
    """What the script sorts by: a number as `data-n`, as JavaScript writes it, text as `data-v`, so that digits in
    an id stay text; nothing for what is missing."""
    if isinstance(value, str):
        return f' data-v="{escape(value)}"'
    if value is None or math.isnan(value):
        return ""
    return f' data-n="{repr(float(value)).replace("inf", "Infinity")}"'
