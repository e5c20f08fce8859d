"""`scaling ...`: the verbs. Thin: each one parses, calls one function, prints a short table.

Heavy imports are inside the verbs, so that `scaling --help` answers at once and `scaling fit` never loads Flax.
"""

from __future__ import annotations

import sys
from typing import Any

import tyro
from rich.console import Console

from scaling.strict import InputError

app = tyro.extras.SubcommandApp()


def user_errors() -> tuple[type[Exception], ...]:
    """The exceptions that mean bad input, by the packages loaded so far."""
    results = sys.modules.get("analysis.results")
    return (InputError, *([results.TableError] if results else []))


def main(arguments: list[str] | None = None) -> None:
    """Entry point. Exit codes: 0 done, 2 bad input (one line on stderr), 4 diverged, 75 stopped by a signal."""
    try:
        code: Any = app.cli(prog="scaling", description=__doc__, args=arguments)
    except KeyboardInterrupt:
        code = 130
    except Exception as error:
        if not isinstance(error, user_errors()):
            raise
        Console(stderr=True, soft_wrap=True).print(f"[red]error:[/] {error}", highlight=False)
        code = 2
    sys.exit(code or 0)


if __name__ == "__main__":
    main()
