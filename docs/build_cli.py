"""Writes docs/cli.md: the help of every command, as `--help` prints it. A test says when the page is stale.

python docs/build_cli.py
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from pathlib import Path

from scaling import cli

PAGE = Path(__file__).with_name("cli.md")
WIDTH = 118
# Subcommands of a verb, whose options stand after them on the command line.
SUBCOMMANDS = {
    "sweep run NAME": ("slurm", "ray"),
    "sweep manifest NAME": ("skypilot", "jobset"),
}
INTRODUCTION = """# Commands

Written by `python docs/build_cli.py` from the commands themselves. Change their docstrings, not this page.
"""


def help_text(arguments: list[str]) -> str:
    """What `scaling ARGUMENTS --help` prints, without trailing spaces."""
    output = io.StringIO()
    environment = dict(os.environ)
    os.environ["COLUMNS"] = str(WIDTH)
    try:
        with contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
            cli.main([*arguments, "--help"])
    finally:
        os.environ.clear()
        os.environ.update(environment)
    return "\n".join(line.rstrip() for line in output.getvalue().strip().splitlines())


def page() -> str:
    """The whole page: a section a command, in the order of `scaling --help`."""
    commands = [verb.split() for verb in cli.VERBS]
    commands += [[*verb.split(), name] for verb, names in SUBCOMMANDS.items() for name in names]
    sections = [f"## scaling {' '.join(words)}\n\n```text\n{help_text(words)}\n```\n" for words in commands]
    return "\n".join([INTRODUCTION, *sections])


def main() -> int:
    """Writes the page."""
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
