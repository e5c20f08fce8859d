"""A real headless Chromium for tests: an installed one, or Debian's, unpacked into .pytest_cache; the host stays clean.

Playwright's own download does not work everywhere, and it drives any Chromium whose path it is given.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CACHE = Path(__file__).resolve().parents[2] / ".pytest_cache" / "chromium"
INSTALLED = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
PACKAGE, UNPACKED = "chromium-headless-shell", Path("usr/lib/chromium/chromium-headless-shell")
FETCH_SECONDS = 240


class Unavailable(Exception):
    """Why no browser can be had here, in one line."""


@dataclass(frozen=True)
class Chromium:
    """An executable, and what it needs in its environment."""

    path: Path
    environment: dict[str, str]


def find() -> Chromium:
    """An installed Chromium, or one unpacked before, or one fetched now. Raises Unavailable."""
    for name in INSTALLED:
        if found := shutil.which(name):
            return Chromium(Path(found), {})
    return fetched(CACHE)


def fetched(cache: Path, options: Sequence[str] = ()) -> Chromium:
    """Debian's Chromium and what it needs that is not here, unpacked into a folder, once. Raises Unavailable.

    options: more of apt-get's.
    """
    root = cache / "root"
    if not (cache / "whole").exists():
        if sys.platform != "linux" or os.geteuid() != 0 or not shutil.which("apt-get"):
            raise Unavailable(f"no Chromium here ({', '.join(INSTALLED)}), and fetching one needs root on a Debian")
        shutil.rmtree(root, ignore_errors=True)
        for package in _packages(cache, options):
            _quiet("dpkg", "-x", package, root)
        shutil.rmtree(cache / "archives")
        (cache / "whole").touch()
    folders = {str(path.parent) for path in root.glob("**/*.so*")}
    return Chromium(root / UNPACKED, {"LD_LIBRARY_PATH": ":".join(sorted(folders))})


def _packages(cache: Path, options: Sequence[str]) -> list[Path]:
    """Downloads with lists of its own, where those of the host are missing or old."""
    archives, lists = cache / "archives", cache / "lists"
    for folder in (archives / "partial", lists / "partial"):
        folder.mkdir(parents=True, exist_ok=True)
    apt = ["apt-get", "-q", "-y", "-o", "APT::Sandbox::User=root", "-o", f"Dir::Cache::archives={archives}"]
    apt += ["-o", "Debug::NoLocking=1", "-o", "Acquire::Retries=2", *options]
    install = ["install", "--download-only", "--no-install-recommends", PACKAGE]
    own = ["-o", f"Dir::State::lists={lists}"]
    try:
        _quiet(*apt, *install)
    except Unavailable:
        _quiet(*apt, *own, "update")
        _quiet(*apt, *own, *install)
    return sorted(archives.glob("*.deb"))


def _quiet(*command: object) -> None:
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
    try:
        subprocess.run(
            [*map(str, command)],
            env=environment,
            check=True,
            capture_output=True,
            text=True,
            timeout=FETCH_SECONDS,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        raise Unavailable(f"no Chromium: {command[0]}: {' '.join(str(said).split())[-300:]}") from None


@contextlib.contextmanager
def browser(chromium: Chromium) -> Iterator[Any]:
    """A running browser, as Playwright's. Raises Unavailable where Playwright is not installed."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        raise Unavailable("playwright is not installed: pip install 'scaling-laws[test]'") from None
    with sync_playwright() as playwright:
        environment = {**os.environ, **chromium.environment}
        options = {"executable_path": str(chromium.path), "args": ["--no-sandbox"], "env": environment}
        running = playwright.chromium.launch(**options)
        try:
            yield running
        finally:
            running.close()
