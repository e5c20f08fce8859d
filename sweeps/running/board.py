"""Shows where a sweep stands: a live table in a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from sweeps.planning.plan import Plan, format_duration
from sweeps.running.progress import CellProgress, estimate_seconds_left

REFRESH_SECONDS = 1.0
FLAGS_SHARE = 0.1
"""Of the time of a live table that may go into flags, which are judged anew when a run has ended."""
BAD_STATES = ("failed", "diverged", "torn")
STATE_COLOURS = {"done": "green", "running": "cyan", **dict.fromkeys(BAD_STATES, "red")}
WIDE_COLUMNS = 110
"""Columns of a terminal from which on a run's id has room beside its name."""
MAX_NAME_CHARS = 30
"""Characters of a name that are always shown."""
OTHER_LINES = 3
"""Lines of the table that are no cells: headings, the sum of what is left out, and the cursor's."""


def progress_line(one: CellProgress) -> str:
    """One cell in one plain line."""
    facts = [f"{one.state:8} {one.run_id} {one.name:16}", f"{one.tokens:,} of {one.budget:,} tokens"]
    if one.loss is not None:
        facts.append(f"loss {one.loss:.4f}")
    if one.tokens_per_second:
        facts.append(f"{one.tokens_per_second:,.0f} tokens/s")
    if one.eta_seconds is not None:
        facts.append(f"{format_duration(one.eta_seconds)} to go")
    if one.where:
        facts.append(f"on {one.where}")
    if tries := describe_attempts(one):
        facts.append(tries)
    if one.flags not in ("", one.state):
        return f"{', '.join(facts)}, flagged {one.flags.replace(', ', ' and ')}: {one.reason}"
    return ", ".join([*facts, *([one.reason] if one.reason else [])])


def describe_attempts(one: CellProgress) -> str:
    """The attempts at a cell, where there was more than one or one went badly."""
    if one.attempts < 2 and not one.troubles:
        return ""
    kinds = ", ".join(f"{n} {kind}" for kind, n in sorted(one.troubles.items(), key=lambda item: -item[1]))
    return f"{one.attempts} attempt{'s' * (one.attempts != 1)}" + (f": {kinds}" if kinds else "")


def describe_totals(now: Sequence[CellProgress]) -> str:
    """How many cells are in each state, and how many that are done are flagged."""
    found = Counter(one.state for one in now)
    flags = sum(one.state == "done" and bool(one.flags) for one in now)
    said = ", ".join(f"{n} {state}" for state, n in found.items()) + f" of {len(now)}"
    return said + (f"; {flags} done but flagged" if flags else "")


def describe_outlook(plan: Plan, now: Sequence[CellProgress]) -> str:
    """How fast the sweep is, and when it will have ended, where that can be told."""
    speed = sum(one.tokens_per_second or 0 for one in now if one.state == "running")
    left = estimate_seconds_left(plan, now)
    return (f"; {speed:,.0f} tokens/s" if speed else "") + (f", about {format_duration(left)} to go" if left else "")


@dataclass(frozen=True)
class ProgressBoard:
    """Cells for a terminal, in as many lines and columns as it has."""

    plan: Plan
    now: tuple[CellProgress, ...]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        title = Text(f"{self.plan.sweep}: {describe_totals(self.now)}{describe_outlook(self.plan, self.now)}", "italic")
        wide = options.max_width >= WIDE_COLUMNS
        room = len(self.now)
        if console.is_terminal:
            room = options.size.height - OTHER_LINES - len(title.wrap(console, options.max_width))
        shown = self.now if len(self.now) <= room else select_cells(self.now, max(room, 1))
        yield title
        yield cell_table(shown, wide)
        if left := Counter(one.state for one in self.now) - Counter(one.state for one in shown):
            said = f"and {sum(left.values())} more: " + ", ".join(f"{n} {state}" for state, n in left.items())
            yield Text(said, "dim", no_wrap=True, overflow="ellipsis")


def progress_board(plan: Plan, now: Sequence[CellProgress]) -> ProgressBoard:
    """Every cell, for a terminal; of more than it has lines the running, the failed and the newest."""
    return ProgressBoard(plan, tuple(now))


def select_cells(now: Sequence[CellProgress], room: int) -> list[CellProgress]:
    """Of many cells those to be looked at: the running, the newest of those that went wrong, which have a third of the
    room if they need it, the newest of the others that ended, those that wait."""
    newest = sorted(now, key=lambda one: -(one.ended_at or 0))
    running = [one for one in now if one.state == "running"]
    bad = [one for one in newest if one.state in BAD_STATES]
    rest = [one for one in newest if one.state not in ("running", *BAD_STATES)]
    bad = bad[: max(room // 3, room - len(running))]
    running = running[: room - len(bad)]
    return [*running, *bad, *rest[: room - len(running) - len(bad)]]


def cell_table(shown: Sequence[CellProgress], wide: bool) -> Table:
    """One line a cell. wide: there is room for the run's id beside its name."""
    out = Table(box=None, pad_edge=False, expand=False)
    named = len({one.name for one in shown}) == len(shown)
    elsewhere = wide and len({one.where for one in shown if one.where}) > 1
    left = ["run"] * (wide or not named) + ["name"] * (wide or named) + ["state"]
    for heading in (*left, "tokens", "loss", "tokens/s", "to go", *["on"] * elsewhere, "what happened"):
        numbers = heading in ("tokens", "loss", "tokens/s", "to go")
        out.add_column(heading, justify="right" if numbers else "left", no_wrap=True, overflow="ellipsis")
    for one in shown:
        what = "; ".join(
            part for part in (one.flags if one.flags != one.state else "", one.reason, describe_attempts(one)) if part
        )
        out.add_row(
            *[one.run_id] * (wide or not named),
            *[Text(one.name)] * (wide or named),
            Text(one.state, STATE_COLOURS.get(one.state, "dim")),
            f"{one.tokens / one.budget:.0%}" if one.budget else "",
            "" if one.loss is None else f"{one.loss:.4f}",
            "" if not one.tokens_per_second else f"{one.tokens_per_second:,.0f}",
            "" if one.eta_seconds is None else format_duration(one.eta_seconds),
            *[Text(one.where)] * elsewhere,
            Text(what.replace("\n", " "), "yellow" if one.flags and one.state == "done" else ""),
        )
    for column in out.columns[:-1]:
        column.min_width = min(max(len(str(cell)) for cell in (column.header, *column.cells)), MAX_NAME_CHARS)
    return out
