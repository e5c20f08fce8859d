"""Formats the progress of a sweep: a live table for a terminal, plain lines elsewhere."""

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
"""Seconds between two drawings of the live table."""
FLAGS_SHARE = 0.1
"""Share of the time of `scaling sweep status` that may go into flags, which are found again when a run has ended."""
BAD_STATES = ("failed", "diverged", "torn")
STATE_COLOURS = {"done": "green", "running": "cyan", **dict.fromkeys(BAD_STATES, "red")}
WIDE_COLUMNS = 110
"""A terminal of at least this many columns shows a run's id beside its name."""
MAX_NAME_CHARS = 30
"""A column is not made narrower than its content or this many characters, whichever is less."""
OTHER_LINES = 3
"""Lines of the table that show no cell: headings, the count of cells left out, and the cursor's line."""


def progress_line(cell: CellProgress) -> str:
    """One cell as one plain line."""
    facts = [f"{cell.state:8} {cell.run_id} {cell.name:16}", f"{cell.tokens:,} of {cell.budget:,} tokens"]
    if cell.loss is not None:
        facts.append(f"loss {cell.loss:.4f}")
    if cell.tokens_per_second:
        facts.append(f"{cell.tokens_per_second:,.0f} tokens/s")
    if cell.eta_seconds is not None:
        facts.append(f"{format_duration(cell.eta_seconds)} to go")
    if cell.where:
        facts.append(f"on {cell.where}")
    if attempts := describe_attempts(cell):
        facts.append(attempts)
    if cell.flags not in ("", cell.state):
        return f"{', '.join(facts)}, flagged {cell.flags.replace(', ', ' and ')}: {cell.reason}"
    return ", ".join([*facts, *([cell.reason] if cell.reason else [])])


def describe_attempts(cell: CellProgress) -> str:
    """The number of attempts at a cell and how the bad ones ended; empty after one good attempt."""
    if cell.attempts < 2 and not cell.troubles:
        return ""
    kinds = ", ".join(f"{n} {kind}" for kind, n in sorted(cell.troubles.items(), key=lambda item: -item[1]))
    return f"{cell.attempts} attempt{'s' * (cell.attempts != 1)}" + (f": {kinds}" if kinds else "")


def describe_totals(now: Sequence[CellProgress]) -> str:
    """How many cells are in each state, and how many of the done ones are flagged."""
    states = Counter(cell.state for cell in now)
    flagged = sum(cell.state == "done" and bool(cell.flags) for cell in now)
    text = ", ".join(f"{n} {state}" for state, n in states.items()) + f" of {len(now)}"
    return text + (f"; {flagged} done but flagged" if flagged else "")


def describe_outlook(plan: Plan, now: Sequence[CellProgress]) -> str:
    """The speed of the sweep and the estimated time until it ends; empty where no cell runs."""
    speed = sum(cell.tokens_per_second or 0 for cell in now if cell.state == "running")
    left = estimate_seconds_left(plan, now)
    return (f"; {speed:,.0f} tokens/s" if speed else "") + (f", about {format_duration(left)} to go" if left else "")


@dataclass(frozen=True)
class ProgressBoard:
    """A rich renderable: the cells of a sweep in as many lines and columns as the terminal has."""

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
        if left := Counter(cell.state for cell in self.now) - Counter(cell.state for cell in shown):
            text = f"and {sum(left.values())} more: " + ", ".join(f"{n} {state}" for state, n in left.items())
            yield Text(text, "dim", no_wrap=True, overflow="ellipsis")


def progress_board(plan: Plan, now: Sequence[CellProgress]) -> ProgressBoard:
    """All cells for a terminal. Where it has too few lines: the running, the failed and the newest (`select_cells`)."""
    return ProgressBoard(plan, tuple(now))


def select_cells(now: Sequence[CellProgress], room: int) -> list[CellProgress]:
    """The `room` cells that matter most, in this order: running ones; the newest failed, diverged and torn ones, which
    get a third of the lines if they need it; the newest of the others that ended; waiting ones."""
    newest = sorted(now, key=lambda cell: -(cell.ended_at or 0))
    running = [cell for cell in now if cell.state == "running"]
    bad = [cell for cell in newest if cell.state in BAD_STATES]
    rest = [cell for cell in newest if cell.state not in ("running", *BAD_STATES)]
    bad = bad[: max(room // 3, room - len(running))]
    running = running[: room - len(bad)]
    return [*running, *bad, *rest[: room - len(running) - len(bad)]]


def cell_table(shown: Sequence[CellProgress], wide: bool) -> Table:
    """A table with one line a cell. wide: whether to show the run's id even where the names tell the cells apart."""
    out = Table(box=None, pad_edge=False, expand=False)
    names_differ = len({cell.name for cell in shown}) == len(shown)
    show_id, show_name = wide or not names_differ, wide or names_differ
    show_where = wide and len({cell.where for cell in shown if cell.where}) > 1
    left = ["run"] * show_id + ["name"] * show_name + ["state"]
    for heading in (*left, "tokens", "loss", "tokens/s", "to go", *["on"] * show_where, "what happened"):
        numbers = heading in ("tokens", "loss", "tokens/s", "to go")
        out.add_column(heading, justify="right" if numbers else "left", no_wrap=True, overflow="ellipsis")
    for progress in shown:
        what_happened = "; ".join(
            part
            for part in (
                progress.flags if progress.flags != progress.state else "",
                progress.reason,
                describe_attempts(progress),
            )
            if part
        )
        out.add_row(
            *[progress.run_id] * show_id,
            *[Text(progress.name)] * show_name,
            Text(progress.state, STATE_COLOURS.get(progress.state, "dim")),
            f"{progress.tokens / progress.budget:.0%}" if progress.budget else "",
            "" if progress.loss is None else f"{progress.loss:.4f}",
            "" if not progress.tokens_per_second else f"{progress.tokens_per_second:,.0f}",
            "" if progress.eta_seconds is None else format_duration(progress.eta_seconds),
            *[Text(progress.where)] * show_where,
            Text(what_happened.replace("\n", " "), "yellow" if progress.flags and progress.state == "done" else ""),
        )
    for column in out.columns[:-1]:
        column.min_width = min(max(len(str(cell)) for cell in (column.header, *column.cells)), MAX_NAME_CHARS)
    return out
