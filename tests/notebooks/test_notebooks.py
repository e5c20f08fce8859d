from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

pytest.importorskip("nbmake", reason="notebooks are run by nbmake: pip install 'scaling-laws[test]'")
jupytext = pytest.importorskip("jupytext", reason="notebooks have jupytext sources: the extra `notebooks`")
nbformat = pytest.importorskip("nbformat")

FOLDER = ROOT / "notebooks"
SOURCES = sorted(path for path in FOLDER.glob("*.py") if path.read_text().startswith("# ---\n# jupyter:"))
NAMES = [path.stem for path in SOURCES]
LARGEST = 200_000
PRIVATE = re.compile(r"(?<![\w.~/:])/(?:home|root|tmp|work|usr|mnt|var|opt|Users)/|\b[A-Z]:\\\w")


def run(notebook: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs every cell with nbmake in a kernel of this interpreter, even if the user has another kernel of that name."""
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "--nbmake",
            "--nbmake-kernel=python3",
            "-p",
            "no:cacheprovider",
            "-q",
            notebook,
        ],
        cwd=ROOT,
        env=os.environ | {"JUPYTER_PREFER_ENV_PATH": "1", "JUPYTER_PLATFORM_DIRS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=600,
    )


def read_notebook(name: str) -> Any:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def outputs(notebook: Any) -> list[Any]:
    return [output for cell in notebook.cells for output in cell.get("outputs", ())]


def test_there_are_the_five_that_the_folder_lists() -> None:
    assert len(NAMES) == 5
    listed = re.findall(r"^\| \[(\w+)\]\(\1\.ipynb\)", (FOLDER / "README.md").read_text(), re.MULTILINE)
    assert sorted(listed) == NAMES == sorted(path.stem for path in FOLDER.glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_cell_runs(name: str, request: pytest.FixtureRequest) -> None:
    if name == "replicate_chinchilla":
        request.getfixturevalue("shared_data")
    process = run(FOLDER / f"{name}.ipynb")
    assert process.returncode == 0, process.stdout[-5000:]
    assert "1 passed" in process.stdout


def test_a_cell_that_fails_fails_the_run_and_the_kernel_is_this_interpreter(tmp_path: Path) -> None:
    cells = [nbformat.v4.new_code_cell(f"import sys; assert sys.prefix == {sys.prefix!r}, sys.prefix")]
    cells.append(nbformat.v4.new_code_cell("assert 1 == 2, 'this cell is broken'"))
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "broken.ipynb")
    process = run(tmp_path / "broken.ipynb")
    assert process.returncode == 1
    assert "this cell is broken" in process.stdout


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_its_source_as_it_was_run(name: str) -> None:
    source, notebook = jupytext.read(FOLDER / f"{name}.py", fmt="py:percent"), read_notebook(name)
    assert [(c.cell_type, c.source) for c in notebook.cells] == [(c.cell_type, c.source) for c in source.cells]
    digest = hashlib.sha256((FOLDER / f"{name}.py").read_bytes()).hexdigest()
    assert notebook.metadata["source_sha256"] == digest, f"python notebooks/build.py {name}"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_kept_of_a_run_is_small_and_says_nothing_of_the_machine(name: str) -> None:
    notebook, path = read_notebook(name), FOLDER / f"{name}.ipynb"
    assert set(notebook.metadata) == {"kernelspec", "source_sha256"}
    assert notebook.metadata["kernelspec"]["name"] == "python3"
    assert all(not cell.metadata for cell in notebook.cells)
    for output in outputs(notebook):
        assert output.get("name") != "stderr"
        assert output.output_type != "error"
        texts = [output.get("text", ""), *(str(v) for kind, v in output.get("data", {}).items() if "png" not in kind)]
        for text in texts:
            assert not PRIVATE.search(text), text
    assert path.stat().st_size < LARGEST


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_ends_in_a_figure(name: str) -> None:
    last = read_notebook(name).cells[-1]
    assert last.cell_type == "code"
    assert "image/png" in last.outputs[-1].data


def test_the_tables_are_small_and_those_of_a_sweep_as_it_was_collected() -> None:
    from analysis import load

    tables = list((FOLDER / "data").glob("*.parquet"))
    assert sum(path.stat().st_size for path in tables) < 100_000
    for path in tables:
        table = load(path)
        assert table["run_id"].is_unique
        assert set(table["sweep"]) == {path.stem}
        assert f"`{path.name}`" in (FOLDER / "data" / "README.md").read_text()


def test_paths_of_a_machine_are_known_when_seen() -> None:
    assert PRIVATE.search("File /home/me/x.py")
    assert PRIVATE.search(r"C:\Users\me")
    assert not PRIVATE.search("https://host/home/ and 10/tmp")
