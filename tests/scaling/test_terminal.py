"""No byte of a name that a terminal would obey reaches it, and no bracket of a name is markup."""

from __future__ import annotations

import ast
import io
import json
import re
from pathlib import Path

import pytest
from rich.progress import Progress, TextColumn
from rich.table import Table
from rich.text import Text

from scaling.record.run_folder import PLAN, RUNS
from scaling.terminal import labelled, make_console, printable
from sweeps.planning.plan import load_plan
from tests.conftest import ROOT, in_process
from tests.support.stand_in_sweep import stand_in_plan

HOSTILE = "a\x1b]0;pwned\x07\x1b[2J\x9b1A\r\u202eb[/x][red]:fire:\udcff"
SHOWN = r"a\x1b]0;pwned\x07\x1b[2J\x9b1A\r\u202eb[/x][red]:fire:\udcff"
OBEYED = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e\ud800-\udfff]")


def test_text_is_printable() -> None:
    assert printable(HOSTILE) == SHOWN
    for text in ("", "wide é 漢字 \N{PILE OF POO}", "two\nlines\tand a tab", "C:\\folder", "[bold]x[/]"):
        assert printable(text) == text


def printed(*shown: object, **options: object) -> str:
    file = io.StringIO()
    console = make_console(file=file, width=200)
    for renderable in shown:
        console.print(renderable, **options)  # pyrefly: ignore
    return file.getvalue()


def test_a_console_prints_names_in_full() -> None:
    table = Table(HOSTILE, "other", title=HOSTILE, box=None)
    table.add_row(HOSTILE, Text("\x1b[2J"))
    for shown in (HOSTILE, labelled("note:", "yellow", HOSTILE), table):
        text = printed(shown)
        assert SHOWN in text
        assert not OBEYED.search(text)
    assert printed(table).count(SHOWN) == 3, "the title, the heading and a cell"


def test_a_terminal_still_gets_colours() -> None:
    file = io.StringIO()
    make_console(file=file, force_terminal=True, color_system="standard").print(labelled("error:", "red", HOSTILE))
    assert file.getvalue() == f"\x1b[31merror:\x1b[0m {SHOWN}\n"


def test_a_progress_bar_shows_the_name() -> None:
    file = io.StringIO()
    console = make_console(file=file, width=200)
    with Progress(TextColumn("{task.description}", markup=False), console=console) as progress:
        progress.add_task("\x1b[2J[/x]", total=1)
    assert r"\x1b[2J" in file.getvalue()
    assert not OBEYED.search(file.getvalue())


def test_the_verbs_of_a_sweep_show_its_names(tmp_path: Path) -> None:
    name = HOSTILE.removesuffix("\udcff")  # half a character is refused in JSON
    folder = tmp_path / "out" / "stand_in"
    stand_in_plan(folder, "")
    document = json.loads((folder / PLAN).read_text())
    text = json.dumps(document).replace(json.dumps(load_plan(folder).cells[0].name)[1:-1], json.dumps(name)[1:-1])
    (folder / PLAN).write_text(text)
    assert load_plan(folder).cells[0].name == name
    done = in_process("sweep", "status", "stand_in", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert printable(name) in done.stdout
    assert not OBEYED.search(done.stdout)


@pytest.mark.parametrize(
    "command",
    [
        ("eval", HOSTILE),
        ("sweep", "status", HOSTILE),
        ("sweep", "plan", HOSTILE),
        ("data", "prepare", HOSTILE),
        ("fit", HOSTILE),
        ("train", "--file", HOSTILE),
    ],
)
def test_an_error_shows_the_name(command: tuple[str, ...], tmp_path: Path) -> None:
    done = in_process(*command, cwd=tmp_path)
    assert done.returncode == 2
    assert "[/x][red]:fire:" in done.stderr
    assert not OBEYED.search(done.stdout + done.stderr)
    assert not (tmp_path / RUNS).exists()


def test_every_console_is_made_here() -> None:
    """rich's own Console, print and track would let control characters through."""
    for package in ("scaling", "sweeps", "analysis"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and path.name != "terminal.py":
                    assert node.func.id not in ("Console", "rprint"), path
                    if node.func.id in ("Progress", "Live", "track") and node.keywords:
                        assert "console" in {keyword.arg for keyword in node.keywords}, path
