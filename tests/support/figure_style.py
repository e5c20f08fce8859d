"""What every figure of the project must be: the rules of analysis/plots/style.py, checked on a figure object."""

from __future__ import annotations

import re

from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text

from analysis.plots.style import LIGHT, SMALL, WIDTH, Theme

UNIT = re.compile(r"\S \([^()]+\)$")


def follows_the_style(figure: Figure, *, intervals: bool = True, held_out: bool = False, theme: Theme = LIGHT) -> None:
    """Fails with what is wrong with a figure.

    intervals: whether it must draw one. held_out: whether it must mark runs that a fit did not see.
    """
    figure.draw_without_rendering()
    for axes in figure.axes:
        _named_axes(axes)
        assert axes.get_legend() is None, "labels stand at the curves, not in a legend"
    assert any(text.get_text() and text.get_fontsize() >= 10 for text in _texts(figure)), "a title"
    _texts_are_whole(figure)
    marks = [artist for axes in figure.axes for artist in (*axes.collections, *axes.containers, *axes.patches)]
    labels = [str(mark.get_label()) for mark in marks]
    assert not intervals or "interval" in labels, "no interval is drawn"
    diamonds = [c for axes in figure.axes for c in axes.collections if c.get_label() == "held out"]
    assert bool(diamonds) == held_out, "held-out runs, and nothing else, are drawn as such"
    for diamond in diamonds:
        assert to_hex(diamond.get_edgecolor()[0]) == theme.accent
        assert to_hex(diamond.get_facecolor()[0]) == theme.paper


def _named_axes(axes: Axes) -> None:
    """Each axis that carries numbers is named with its unit, and its labels are plain numbers."""
    for axis in (axes.xaxis, axes.yaxis):
        shown = [label.get_text() for label in axis.get_ticklabels() if label.get_visible() and label.get_text()]
        assert not any("$" in text for text in shown), f"bare powers: {shown}"
        numbers = [text for text in shown if re.fullmatch(r"[−-]?[\d.,]+[kMBT%]?|.*10[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+", text)]
        if len(numbers) > 1:
            assert UNIT.search(axis.get_label_text()), f"no unit: {axis.get_label_text()!r} on {shown}"


def _texts(figure: Figure) -> list[Text]:
    return [t for t in figure.findobj(Text) if isinstance(t, Text) and t.get_visible() and t.get_text().strip()]


def _texts_are_whole(figure: Figure) -> None:
    """No text is cut off by the edge, or smaller than a phone can show."""
    smallest = SMALL * min(1.0, figure.get_figwidth() / WIDTH)
    page = figure.bbox
    ticks = {
        label for axes in figure.axes for a in (axes.xaxis, axes.yaxis) for label in a.get_ticklabels(which="both")
    }
    shown = {label for axes in figure.axes for a in (axes.xaxis, axes.yaxis) for label in _seen(a)}
    for text in _texts(figure):
        if text in ticks and text not in shown:
            continue
        assert text.get_fontsize() >= smallest, f"{text.get_text()!r} is of {text.get_fontsize()} points"
        box = text.get_window_extent()
        inside = box.x0 >= -1 and box.y0 >= -1 and box.x1 <= page.x1 + 1 and box.y1 <= page.y1 + 1
        assert inside, f"{text.get_text()!r} is cut off: {box.extents} in {page.extents}"


def _seen(axis) -> list[Text]:
    low, high = sorted(axis.get_view_interval())
    return [t.label1 for t in axis.get_major_ticks() if low <= t.get_loc() <= high]
