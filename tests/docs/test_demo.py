"""The README's two commands. The demo's own recipe is run, as the Makefile has it, on a sweep of seconds."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from tests.conftest import LONG_FILES, ROOT, scaling

SWEEP = "out/smoke"


def demo_verbs() -> list[list[str]]:
    """The `scaling` commands under `demo:` in the Makefile, the sweep replaced by the small one."""
    recipe = re.search(r"^demo:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert recipe
    lines = [line.strip() for line in recipe[1].splitlines()]
    assert all(line.startswith("$(BIN)/scaling ") for line in lines), lines
    return [
        shlex.split(
            line.removeprefix("$(BIN)/scaling ").replace("stdlib_cpu", "smoke").replace("sweeps/", f"{ROOT}/sweeps/")
        )
        for line in lines
    ]


@pytest.fixture(scope="module")
def demo(stdlib: tuple[Path, subprocess.CompletedProcess[str]]) -> tuple[Path, str]:
    """Where the recipe has been run, and what its last verb printed. Its first is the fixture's."""
    folder, process = stdlib
    first, *others = demo_verbs()
    assert first == process.args[-3:]
    for verb in others:
        process = scaling(*verb, cwd=folder)
        assert process.returncode == 0, (verb, process.stdout[-2000:], process.stderr[-2000:])
    return folder, process.stdout


@pytest.mark.slow
def test_leaves_what_it_promises(demo: tuple[Path, str]) -> None:
    folder, _ = demo
    names = {path.name for path in (folder / SWEEP).iterdir()}
    assert names >= {
        "plan.json",
        "results.parquet",
        "results.csv",
        "fit.json",
        "forecast.json",
        "report.html",
        "figures",
    }
    assert len(list((folder / SWEEP / "figures").iterdir())) >= 4
    csv, parquet = pd.read_csv(folder / SWEEP / "results.csv"), pd.read_parquet(folder / SWEEP / "results.parquet")
    assert {"cloze/accuracy", "brackets/accuracy", "brackets/chance"} <= set(parquet)
    assert len(csv) == len(parquet) == len(json.loads((folder / SWEEP / "plan.json").read_text())["cells"])
    assert not re.search(r"""(src|href)=["']?(http|//)|<script[^>]+src""", (folder / SWEEP / "report.html").read_text())


@pytest.mark.slow
def test_the_forecast_is_of_the_largest_run_which_the_fit_did_not_see(demo: tuple[Path, str]) -> None:
    folder, printed = demo
    forecast = json.loads((folder / SWEEP / "forecast.json").read_text())
    fit = json.loads((folder / SWEEP / "fit.json").read_text())
    table = pd.read_parquet(folder / SWEEP / "results.parquet").set_index("run_id")
    largest = table["flops"].idxmax()
    assert forecast["measured"] == table.loc[largest, "loss"]
    error = forecast["predicted"] / forecast["measured"] - 1
    assert abs(forecast["relative_error"]) == pytest.approx(abs(error))
    assert forecast["low"] <= forecast["predicted"] <= forecast["high"]
    assert largest not in {point["run_id"] for point in fit["points"]}
    assert len(fit["points"]) == len(table) - 1
    last = printed.strip().splitlines()[-1]
    for number in (forecast["predicted"], forecast["measured"]):
        assert f"{number:.4f}" in last
    assert f"{abs(forecast['relative_error']) * 100:.2g} %" in last


@pytest.mark.slow
def test_the_second_time_trains_nothing(demo: tuple[Path, str]) -> None:
    folder, _ = demo
    results = {path: path.stat().st_mtime_ns for path in folder.glob(f"{SWEEP}/runs/*/*")}
    table = (folder / SWEEP / "results.csv").read_bytes()
    for verb in demo_verbs():
        if verb[0] in ("sweep", "eval"):
            assert scaling(*verb, cwd=folder).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in folder.glob(f"{SWEEP}/runs/*/*")} == results
    assert (folder / SWEEP / "results.csv").read_bytes() == table


def test_make_installs_then_runs_the_whole_suite_and_ci_does_the_same() -> None:
    steps = subprocess.run(
        ["make", "--dry-run", "--always-make", "test"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert re.search(
        r"-m venv \.venv .*\n(.*\n)*.*pip install .*constraints\.txt.*\[data,.*,test\].*\n"
        r"(.*\n)*.*python -m pytest --numprocesses auto [^\n]*\n",
        steps,
    )
    assert [name for name in LONG_FILES if not (ROOT / name).exists()] == []
    slow = [line for line in (ROOT / "tests" / "slow_tests.txt").read_text().splitlines() if not line.startswith("#")]
    missing = [
        line for line in slow if f"def {line.partition('::')[2]}(" not in (ROOT / line.partition("::")[0]).read_text()
    ]
    assert missing == []
    assert " -m " not in steps.splitlines()[-1].partition("pytest")[2], "make test leaves tests out"
    assert (ROOT / ".ci" / "run").read_text().rstrip().endswith("\nmake test")
    readme = (ROOT / "README.md").read_text()
    assert "make demo" in readme
    assert "make test" in readme
