"""A sweep of real runs in a storm: processes killed, a disk that fills up, a torn line. In the end its table and every
curve equal those of the same sweep left in peace, bit for bit.

Two terminals work on one sweep folder, two runs at once each; one of them packs runs into populations, the other does
not. The test plays the users: a terminal whose command has ended types it again, as long as not all is done. What
strikes, and whom, is drawn from a seed; when, is told by the steps that have been made, so that a fast machine and a
slow one see the same storm.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from scaling.exit_codes import BAD_INPUT, STOPPED
from scaling.record.run_folder import METRICS, RESULT, RUNS, read_metrics
from sweeps.catalog import smoke
from sweeps.grids import Sweep, apply, axis, overlay, product
from sweeps.planning.plan import Cell, Plan, build_plan, freeze_plan
from sweeps.running import attempt_log
from sweeps.running.outcomes import result_status
from tests.conftest import scaling
from tests.support.stand_in_sweep import WALL_TIME

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="finds the processes to kill in /proc"),
]
SEED = 6
STRIKES = {"run": 8, "runner": 3, "terminate": 1, "tear": 1, "fill": 1}
TORN = '{"step": 3, "tokens": 15'
CLOCKS = ("seconds", "tokens_per_second")
TERMINALS = (("--jobs", "2"), ("--jobs", "2", "--members", "1"))
PATIENCE, FULL_PATIENCE, DISK_BYTES = 900.0, 60.0, 200 * 2**20
SHORT = {
    "measure.checkpoint_every_tokens": 16_384,
    "schedule.cooldown_fraction": 0.5,
    "measure.validation_tokens": 2048,
}
QUICK = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.05"}
"""A run is mostly its start here, and that mostly programs; all are kept."""


def chaos_plan(folder: Path, corpora: Path, **changes: Any) -> Plan:
    """Two widths, two seeds, three horizons: 4 trunks of 192 steps, each with branches of 48 and 24 of their own."""
    sizes = product(axis("model.width", 8, 16), axis("seed", 0, 1), axis("tokens", 24_576, 49_152, 98_304))
    base = overlay(smoke.sweep().cells[0], SHORT | changes | {"data.corpus": "walk", "data.directory": str(corpora)})
    cells = tuple(dataclasses.replace(cell, name=f"c{i}") for i, cell in enumerate(apply(base, sizes)))
    return freeze_plan(folder, build_plan(Sweep("chaos", cells, "short runs"), WALL_TIME))


@dataclass
class Terminal:
    """Someone who types one command until all is done. typed: how often; codes: how it ended."""

    command: list[str]
    log: Path
    process: subprocess.Popen[bytes] | None = None
    typed: int = 0
    codes: Counter[int] = field(default_factory=Counter)

    def ended(self) -> bool:
        if self.process is not None and (code := self.process.poll()) is not None:
            self.codes[code] += 1
            self.process = None
        return self.process is None

    def type(self) -> None:
        self.typed += 1
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log, start_new_session=True)


@dataclass
class Storm:
    """What became of it. struck: how often by kind; seen: processes by kind, attempts at runs among them."""

    folder: Path
    plan: Plan
    terminals: tuple[Terminal, ...]
    disk: bool
    struck: Counter[str] = field(default_factory=Counter)
    seen: dict[int, str] = field(default_factory=dict)
    seconds: float = 0.0

    def counts(self) -> str:
        kinds = Counter(self.seen.values())
        runs = Counter(result_status(self.run(cell)) for cell in self.plan.cells)
        lines = [line for cell in self.plan.cells for line in attempt_log.read_attempts(self.run(cell))]
        attempts = Counter(line.get("kind", line["event"]) for line in lines)
        typed = sum(terminal.typed for terminal in self.terminals)
        return (
            f"strikes {dict(self.struck)}; processes {dict(kinds)}; commands typed {typed}, ended "
            f"{dict(sum((terminal.codes for terminal in self.terminals), Counter()))}; attempts at runs "
            f"{dict(attempts)}; runs {dict(runs)}; "
            f"{self.seconds:.0f} s"
        )

    def run(self, cell: Cell) -> Path:
        return self.folder / RUNS / cell.run_id

    def done(self) -> bool:
        return all(result_status(self.run(cell)) == "done" for cell in self.plan.cells)

    def steps(self) -> int:
        """Steps made so far, each counted once."""
        made = 0
        for cell in self.plan.cells:
            before = cell.config.branch_step if cell.config.branch_of else 0
            last = (read_metrics(self.run(cell)) or [{"step": 0}])[-1]["step"]
            made += max(last - before, 0)
        return made

    def alive(self) -> dict[str, list[int]]:
        """Processes of this sweep by kind: runner, run (a population's among them)."""
        found: dict[str, list[int]] = {"runner": [], "run": []}
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                words = path.read_text().split("\0")
                if str(self.folder.parent) in words and "sweep" in words:
                    found["runner"].append(int(path.parent.name))
                elif any(word.startswith(f"{self.folder / RUNS}/") for word in words):
                    found["run"].append(int(path.parent.name))
                    self.seen[int(path.parent.name)] = "population" if "population" in words else "run"
        self.seen |= dict.fromkeys(found["runner"], "runner")
        return found

    def strike(self, kind: str, chance: random.Random) -> bool:
        """Does one harm; False when there is nobody to do it to just now."""
        alive = self.alive()
        if kind == "fill":
            return self.fill()
        if kind == "tear":
            return self.tear(alive["run"])
        victims = alive["run" if kind == "run" else "runner"]
        if kind == "terminate":
            victims = [pid for pid in victims if hears(pid)]
        if not victims:
            return False
        victim = chance.choice(sorted(victims))
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGTERM if kind == "terminate" else signal.SIGKILL)
        if kind == "terminate":
            self.see_off(victim)
        return True

    def see_off(self, runner: int) -> None:
        """Nothing else strikes before a runner has stopped, which would end it otherwise."""
        for terminal in self.terminals:
            if terminal.process is not None and terminal.process.pid == runner:
                terminal.process.wait(PATIENCE)

    def tear(self, victims: list[int]) -> bool:
        """A run dies in the middle of a line. A branch would copy its trunk's lines anew, so a trunk it is."""
        trunks = {str(self.run(cell)) for cell in self.plan.cells if not cell.config.branch_of}
        for pid in victims:
            with contextlib.suppress(OSError):
                for run in map(Path, trunks & set(Path(f"/proc/{pid}/cmdline").read_text().split("\0"))):
                    if (run / METRICS).exists() and not (run / RESULT).exists():
                        os.kill(pid, signal.SIGSTOP)
                        with (run / METRICS).open("a") as metrics:
                            metrics.write(TORN)
                        os.kill(pid, signal.SIGKILL)
                        return True
        return False

    def gave_up(self) -> bool:
        """Whether a command ended as it does when it cannot go on as things are."""
        return any(terminal.ended() and terminal.codes[BAD_INPUT] for terminal in self.terminals)

    def fill(self) -> bool:
        """The disk has not a byte left until a runner has given up over it."""
        ballast, patience = self.folder / "ballast", time.monotonic() + FULL_PATIENCE
        try:
            with ballast.open("wb", buffering=0) as file:
                for size in (2**20, 2**10, 1):
                    with contextlib.suppress(OSError):
                        while file.write(b"0" * size):
                            pass
            while not self.gave_up() and time.monotonic() < patience:
                time.sleep(0.1)
        finally:
            ballast.unlink()
        return True


def hears(pid: int) -> bool:
    """Whether a process has a handler for SIGTERM, hence is past its start."""
    with contextlib.suppress(OSError):
        caught = next(
            line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigCgt")
        )
        return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)
    return False


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, bool]]:
    """A folder, and whether it is a small disk of its own, which takes root."""
    place = tmp_path_factory.mktemp("disk")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "chaos", str(place)], capture_output=True, check=False
    )
    yield place, mounted.returncode == 0
    if mounted.returncode == 0:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory, corpora: Path) -> Path:
    """The sweep left in peace, whose runs save but what branches need, and at their end."""
    out = tmp_path_factory.mktemp("quiet")
    chaos_plan(out / "chaos", corpora, **{"measure.checkpoint_every_tokens": 2**40})
    done = scaling("sweep", "run", "chaos", "--out", out, *TERMINALS[0], **QUICK)
    assert done.returncode == 0, done.stdout + done.stderr
    return out / "chaos"


@pytest.fixture(scope="module")
def storm(disk: tuple[Path, bool], corpora: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Storm]:
    """The sweep struck as STRIKES says, and gone on with until it is done."""
    place, mounted = disk
    out, logs = place / "out", tmp_path_factory.mktemp("terminals")
    plan = chaos_plan(out / "chaos", corpora)
    command = [sys.executable, "-m", "scaling.cli", "sweep", "run", "chaos", "--out", str(out)]
    terminals = tuple(Terminal([*command, *flags], logs / f"{i}") for i, flags in enumerate(TERMINALS))
    made = Storm(out / "chaos", plan, terminals, mounted)
    chance = random.Random(SEED)
    kinds = [kind for kind, times in STRIKES.items() for _ in range(times) if mounted or kind != "fill"]
    chance.shuffle(kinds)
    kinds.sort(key=lambda kind: kind != "tear")
    total = sum(cell.config.own_steps for cell in plan.cells)
    due = sorted(chance.uniform(0.02, 0.9) * total for _ in kinds)
    began = time.monotonic()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in QUICK.items():
            patch.setenv(name, value)
        try:
            while not made.done():
                assert time.monotonic() - began < PATIENCE, f"not done: {made.counts()}\n{tails(terminals)}"
                for terminal in terminals:
                    if terminal.ended():
                        terminal.type()
                made.alive()
                if kinds and made.steps() >= due[0]:
                    struck = next((kind for kind in dict.fromkeys(kinds) if made.strike(kind, chance)), None)
                    if struck is not None:
                        made.struck[struck] += 1
                        kinds.remove(struck)
                        due.pop(0)
                time.sleep(0.1)
            for terminal in terminals:
                if terminal.process is not None:
                    terminal.process.wait(60)
                    terminal.ended()
            made.seconds = time.monotonic() - began
            print(f"\n{made.counts()}")
            yield made
        finally:
            for pids in made.alive().values():
                for pid in pids:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)


def tails(terminals: tuple[Terminal, ...]) -> str:
    return "\n".join(terminal.log.read_text()[-2000:] for terminal in terminals)


def test_whoever_typed_read_a_plain_line(storm: Storm) -> None:
    """However a command ended, it told its user so in a sentence."""
    for terminal in storm.terminals:
        assert "Traceback" not in terminal.log.read_text()
        assert set(terminal.codes) <= {0, 1, 2, STOPPED, -signal.SIGKILL, -signal.SIGTERM}


def collected(folder: Path) -> pd.DataFrame:
    done = scaling("sweep", "collect", folder.name, "--out", folder.parent)
    assert done.returncode == 0, done.stderr
    return pd.read_parquet(folder / "results.parquet").drop(columns=list(CLOCKS))


def curve(run: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key not in CLOCKS} for line in read_metrics(run)]


def test_the_table_is_that_of_the_sweep_left_in_peace(storm: Storm, quiet: Path) -> None:
    ours, theirs = collected(storm.folder), collected(quiet)
    assert len(theirs) == len(storm.plan.cells) == theirs["loss"].nunique() == 12
    assert (theirs["branch_of"] != "").sum() == 8
    pd.testing.assert_frame_equal(ours, theirs, check_exact=True)


def test_every_curve_is_that_of_the_sweep_left_in_peace(storm: Storm, quiet: Path) -> None:
    for cell in storm.plan.cells:
        theirs = curve(quiet / RUNS / cell.run_id)
        assert [line["step"] for line in theirs] == list(range(1, cell.config.steps + 1))
        assert curve(storm.run(cell)) == theirs


def test_everything_struck(storm: Storm) -> None:
    expected = dict(STRIKES) if storm.disk else {kind: n for kind, n in STRIKES.items() if kind != "fill"}
    assert dict(storm.struck) == expected
    attempts = Counter(storm.seen.values())
    assert attempts["population"] > 0
    assert attempts["runner"] > len(TERMINALS)


def test_a_line_was_torn(storm: Storm) -> None:
    assert any(TORN in (storm.run(cell) / METRICS).read_text().splitlines() for cell in storm.plan.cells)


def test_who_is_asked_to_stop_does_so_in_order(storm: Storm) -> None:
    assert sum(terminal.codes[STOPPED] for terminal in storm.terminals) == STRIKES["terminate"]


def test_nothing_is_left_behind(storm: Storm) -> None:
    assert storm.alive() == {"runner": [], "run": []}


def test_the_disk_was_full(storm: Storm) -> None:
    if not storm.disk:
        pytest.skip("the storm went without a full disk: a small disk of its own takes root, to mount a tmpfs")
    gave_up = [terminal for terminal in storm.terminals if terminal.codes[BAD_INPUT]]
    assert any(f"Errno {errno.ENOSPC}" in terminal.log.read_text() for terminal in gave_up)
