"""How hosts that share a folder alone hear each other: each writes a file, again and again, and reads the others'.

Not in the design's list of modules: hosts.py says what they tell each other.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scaling.errors import InputError
from scaling.files import read_json, write_json

BEAT_SECONDS, SILENT_SECONDS, START_SECONDS = 1.0, 60.0, 1800.0


@dataclass
class Voice:
    """What another host last wrote, and when this one last found it changed: their clocks may differ."""

    path: Path
    said: dict[str, Any] = field(default_factory=dict)
    heard: float = field(default_factory=time.monotonic)
    old: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.old = self._read()

    def listen(self) -> dict[str, Any]:
        """What it says; nothing as long as that may be from an earlier life of it."""
        now = self._read()
        if now not in ({}, self.said, self.old):
            self.said, self.heard = now, time.monotonic()
        return self.said

    @property
    def silent(self) -> bool:
        """Whether it has not spoken for too long, or never came."""
        return time.monotonic() - self.heard > (SILENT_SECONDS if self.said else START_SECONDS)

    def _read(self) -> dict[str, Any]:
        try:
            return read_json(self.path)
        except (InputError, OSError):
            return {}


@dataclass
class Speaker:
    """What this host says, again and again, so that others hear that it lives."""

    path: Path
    says: dict[str, Any] = field(default_factory=dict)
    spoke: float = 0.0
    beats: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def say(self, says: Mapping[str, Any]) -> None:
        """Says this from now on."""
        with self.lock:
            self.says = dict(says)
            self._speak()

    def beat(self) -> None:
        """Says it again, when it is time."""
        with self.lock:
            if time.monotonic() - self.spoke > BEAT_SECONDS:
                self._speak()

    def _speak(self) -> None:
        self.beats += 1
        write_json(self.path, self.says | {"beat": self.beats}, durable=False)
        self.spoke = time.monotonic()
