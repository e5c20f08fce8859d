"""Checks the handbook: links resolve, verbs and flags exist, and the worked examples run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from scaling.cli import VERBS
from tests.conftest import ROOT, in_process

PAGES = sorted([*(ROOT / "docs").glob("*.md"), *(ROOT / "notebooks").rglob("*.md")])
PAGES += [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "LOG.md")]
EXAMPLES = sorted((ROOT / "docs").glob("add_a_*.md"))
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# ([\w./]+/[\w.]+)(, at its end)?\n")
GROUPS = {verb.split()[0] for verb in VERBS if " " in verb}
WAYS = {"slurm", "ray", "skypilot", "jobset", "tensorboard", "wandb"}
KNOWN = set(VERBS)


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def anchors(page: Path) -> set[str]:
    """Of a page's headings, as forges make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_of_a_page_resolve(page: Path) -> None:
    text = FENCE.sub("", page.read_text())
    for target in re.findall(r"\]\(\s*([^)\s]+)\s*\)", text):
        if re.match(r"https?://|mailto:", target):
            continue
        path, _, anchor = target.partition("#")
        linked_path = (page.parent / path).resolve() if path else page
        assert linked_path.is_relative_to(ROOT), f"{target} leaves the repository"
        assert linked_path.exists(), target
        assert not anchor or anchor in anchors(linked_path), target


def test_every_page_of_the_handbook_is_reached_from_its_entry() -> None:
    entry = (ROOT / "docs" / "README.md").read_text()
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert pages == set(re.findall(r"\]\((\w+\.md)\)", entry))


def commands(text: str) -> Iterator[tuple[str, list[str], set[str]]]:
    """Each `scaling ...` of a page, where it is code for a shell: (verb, flags, ways of doing it that it names)."""
    code = [block for kind, block in FENCE.findall(text) if kind in ("sh", "text")]
    text = FENCE.sub("", text)
    code += re.findall(r"`([^`]+)`", text) + re.findall(r"^ {4,}(?:\$ )?(scaling .*)$", text, re.MULTILINE)
    for command in re.findall(r"(?:^|[\s$])scaling ((?:[a-z]+ ?)+.*)$", "\n".join(code), re.MULTILINE):
        words = command.split("#")[0].split()
        verb = " ".join(words[: 2 if words[0] in GROUPS else 1])
        yield verb, [word.partition("=")[0] for word in words if word.startswith("--")], WAYS & {*words}


@cache
def help_of(verb: str) -> str:
    process = in_process(*verb.split(), "--help", cwd=ROOT)
    assert process.returncode == 0, process.stderr
    return process.stdout


@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in ("LOG.md", "cli.md")], ids=name)
def test_verbs_and_flags_of_a_page_exist(page: Path) -> None:
    for verb, flags, ways in commands(page.read_text()):
        assert verb in KNOWN, verb
        helps = [help_of(verb), *(help_of(f"{verb} NAME {way}") for way in ways)] if flags else []
        flags_of_help = re.findall(r"--[\w.-]+", "".join(helps))
        for flag in flags:
            assert flag in flags_of_help, f"scaling {verb} {flag}"


def test_commands_are_found_where_a_reader_sees_them() -> None:
    text = "`scaling fit T --law x`\n\n    $ scaling sweep run N --jobs 2 ray  # --no\n\n"
    text += "```sh\nscaling rates T --out=F\n```\n"
    expected = [("fit", ["--law"], set()), ("rates", ["--out"], set()), ("sweep run", ["--jobs"], {"ray"})]
    assert sorted(commands(text), key=str) == expected
    assert not list(commands("the scaling of text is not a verb"))


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the packages that examples may change, with a `scaling` that runs it."""
    for package in ("scaling", "sweeps", "analysis"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "notebooks" / "data", tmp_path / "notebooks" / "data")
    command = tmp_path / "bin" / "scaling"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m scaling.cli "$@"\n')
    command.chmod(0o755)
    return tmp_path


def carry_out(page: Path, checkout: Path) -> None:
    """Does what a page says, block by block: files are written or added to, differences applied, commands and programs
    run."""
    path = f"{checkout / 'bin'}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(checkout)}
    for kind, block in FENCE.findall(page.read_text()):
        if kind == "diff":
            apply(block, checkout)
        elif kind == "python" and (heading := FILE.match(block)):
            file = checkout / heading[1]
            assert file.exists() == bool(heading[2]), f"{heading[1]} is there: {file.exists()}"
            file.write_text((file.read_text() if heading[2] else "") + block[heading.end() :])
        else:
            program = {"sh": ["sh", "-e", "-c", block], "python": [sys.executable, "-c", block]}[kind]
            process = subprocess.run(
                program, cwd=checkout, env=environment, capture_output=True, text=True, timeout=600, check=False
            )
            assert process.returncode == 0, f"{block}\n{process.stdout[-2000:]}\n{process.stderr[-3000:]}"


def apply(block: str, checkout: Path) -> None:
    """A difference of one place: the lines with - stand once in the file, and are replaced by those with +."""
    head, *lines = block.splitlines()
    file = checkout / head.removeprefix("--- ")
    old, new = ("".join(f"{line[1:]}\n" for line in lines if line[0] == sign) for sign in "-+")
    text = file.read_text()
    assert text.count(old) == 1, f"{file.name} has {text.count(old)} of {old}"
    file.write_text(text.replace(old, new))


@pytest.mark.slow
@pytest.mark.parametrize("page", EXAMPLES, ids=lambda page: page.stem)
def test_a_worked_example_runs_as_it_stands(page: Path, checkout: Path) -> None:
    carry_out(page, checkout)


def test_an_example_that_fails_is_seen(tmp_path: Path, checkout: Path) -> None:
    page = tmp_path / "page.md"
    for wrong in (
        "```sh\nfalse\ntrue\n```\n",
        "```python\nassert 1 == 2\n```\n",
        "```python\n# sweeps/catalog/smoke.py\n```\n",
    ):
        page.write_text(wrong)
        with pytest.raises(AssertionError):
            carry_out(page, checkout)
    with pytest.raises(AssertionError, match="has 0 of"):
        apply("--- sweeps/catalog/smoke.py\n-no such line\n+another\n", checkout)
