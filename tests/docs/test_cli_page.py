"""docs/cli.md is what the commands print with --help today."""

from __future__ import annotations

import runpy

from tests.conftest import ROOT


def test_the_page_of_commands_is_up_to_date() -> None:
    build = runpy.run_path(str(ROOT / "docs" / "build_cli.py"))
    assert (ROOT / "docs" / "cli.md").read_text() == build["page"](), "run `python docs/build_cli.py`"
