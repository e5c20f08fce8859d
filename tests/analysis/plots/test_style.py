from __future__ import annotations

import numpy as np
import pytest

from analysis.plots import style
from tests.support.figure_style import follows_the_style


@pytest.mark.parametrize(
    ("count", "text"),
    [(999, "999"), (33_000, "33k"), (217_280, "217k"), (999_960, "1M"), (1.2e9, "1.2B"), (2e12, "2T")],
)
def test_counts_read_as_people_say_them(count: float, text: str) -> None:
    assert style.format_count(count) == text


def test_scientific() -> None:
    assert style.format_scientific(1.2e15) == "1.2×10¹⁵"
    assert style.format_scientific(1e-3) == "10⁻³"


@pytest.mark.parametrize(("low", "high"), [(1.2, 1.5), (1.0, 9.0), (1e4, 3e5), (1e3, 1e6), (1e17, 1e26)])
def test_log_ticks_are_few_round_and_inside(low: float, high: float) -> None:
    with style.canvas("ticks", style.LIGHT) as (_, (axes,)):
        axes.set(xscale="log", xlim=(low, high))
        style.set_log_ticks(axes.xaxis)
    ticks = axes.xaxis.get_majorticklocs()
    assert 3 <= len(ticks) <= 8
    assert np.all((ticks >= low * 0.99) & (ticks <= high * 1.01))
    shown = [style.format_count(tick) for tick in ticks]
    assert len(set(shown)) == len(shown)
    assert all(float(f"{tick:.3g}") == pytest.approx(tick) for tick in ticks)


def test_end_labels_stand_apart_in_their_order() -> None:
    with style.canvas("ends", style.LIGHT) as (figure, (axes,)):
        axes.set(xscale="log", yscale="log", xlim=(1, 10), ylim=(1, 2), xlabel="x (units)", ylabel="y (units)")
        style.set_plain_ticks(axes)
        style.label_curve_ends(axes, [(1.5, "b", "k"), (1.501, "c", "k"), (1.1, "a", "k")], "", style.LIGHT)
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in axes.texts]
    assert [text.get_text() for text in axes.texts] == ["a", "b", "c"]
    assert boxes[1].y1 <= boxes[2].y0 + 2


def breaks(kind: str) -> style.Figure:
    """A figure that breaks one rule."""
    with style.canvas("A title", style.LIGHT) as (figure, (axes,)):
        axes.plot([1, 2, 3], [1, 2, 3], label="curve")
        axes.fill_between([1, 2], 1, 2, label="" if kind == "interval" else "interval")
        axes.set(xlabel="tokens" if kind == "unit" else "data (tokens)", ylabel="loss (nats per token)")
        if kind == "legend":
            axes.legend()
        if kind == "powers":
            axes.set(xscale="log", xlim=(1, 1e6))
        if kind == "cut off":
            axes.text(1.2, 0.5, "too far to the right", transform=axes.transAxes, in_layout=False)
        if kind == "held out":
            axes.scatter([1], [1], marker="D", label="held out")
        if kind == "small":
            axes.text(1, 1, "small", fontsize=5)
    return figure


def test_the_style_is_checked() -> None:
    follows_the_style(breaks("nothing"))


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("interval", "interval"),
        ("unit", "unit.*tokens"),
        ("legend", "legend"),
        ("powers", "powers"),
        ("cut off", "too far to the right"),
        ("held out", "held-out"),
        ("small", "small.*5"),
    ],
)
def test_a_figure_that_breaks_a_rule_is_refused(kind: str, said: str) -> None:
    with pytest.raises(AssertionError, match=said):
        follows_the_style(breaks(kind))
