"""A real headless Chromium for tests: an installed one, or Debian's package, unpacked into .pytest_cache without being
installed.

Playwright can drive any Chromium whose path it is given; its own download does not work everywhere.
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


class BrowserUnavailable(Exception):
    """No browser is available; the message says why, in one line."""


@dataclass(frozen=True)
class Chromium:
    """An executable, and the environment variables that it needs."""

    path: Path
    environment: dict[str, str]


def find_chromium() -> Chromium:
    """An installed Chromium, else an unpacked one, downloaded if needed. Raises BrowserUnavailable."""
    for name in INSTALLED:
        if path := shutil.which(name):
            return Chromium(Path(path), {})
    return fetch_chromium(CACHE)


def fetch_chromium(cache: Path, options: Sequence[str] = ()) -> Chromium:
    """Downloads Debian's Chromium with the libraries that are not installed, and unpacks them into a folder, once.

    options: further options of apt-get.

    Raises BrowserUnavailable.
    """
    root = cache / "root"
    if not (cache / "whole").exists():
        if sys.platform != "linux" or os.geteuid() != 0 or not shutil.which("apt-get"):
            raise BrowserUnavailable(
                f"no Chromium here ({', '.join(INSTALLED)}), and fetching one needs root on a Debian"
            )
        shutil.rmtree(root, ignore_errors=True)
        for package in _packages(cache, options):
            _quiet("dpkg", "-x", package, root)
        shutil.rmtree(cache / "archives")
        (cache / "whole").touch()
    folders = {str(path.parent) for path in root.glob("**/*.so*")}
    return Chromium(root / UNPACKED, {"LD_LIBRARY_PATH": ":".join(sorted(folders))})


def _packages(cache: Path, options: Sequence[str]) -> list[Path]:
    """Downloads the packages and returns their files. If the package lists of the host are missing or old, apt-get gets
    lists of its own."""
    archives, lists = cache / "archives", cache / "lists"
    for folder in (archives / "partial", lists / "partial"):
        folder.mkdir(parents=True, exist_ok=True)
    apt = ["apt-get", "-q", "-y", "-o", "APT::Sandbox::User=root", "-o", f"Dir::Cache::archives={archives}"]
    apt += ["-o", "Debug::NoLocking=1", "-o", "Acquire::Retries=2", *options]
    install = ["install", "--download-only", "--no-install-recommends", PACKAGE]
    own = ["-o", f"Dir::State::lists={lists}"]
    try:
        _quiet(*apt, *install)
    except BrowserUnavailable:
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
        text = getattr(error, "stderr", None) or str(error)
        raise BrowserUnavailable(f"no Chromium: {command[0]}: {' '.join(str(text).split())[-300:]}") from None


@contextlib.contextmanager
def open_browser(chromium: Chromium) -> Iterator[Any]:
    """A running browser, as Playwright's object. Raises BrowserUnavailable if Playwright is not installed."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        raise BrowserUnavailable("playwright is not installed: pip install 'scaling-laws[test]'") from None
    with sync_playwright() as playwright:
        environment = {**os.environ, **chromium.environment}
        options = {"executable_path": str(chromium.path), "args": ["--no-sandbox"], "env": environment}
        chromium_browser = playwright.chromium.launch(**options)
        try:
            yield chromium_browser
        finally:
            chromium_browser.close()
