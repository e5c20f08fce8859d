"""Runs the notebooks from their sources and writes them with their outputs: `python notebooks/build.py [NAME ...]`.

The sources (jupytext, py:percent) are what is edited and reviewed. What is kept beside them is for people who read on a
forge: no timestamps, no versions, no paths of the machine that ran them, nothing on stderr.
tests/notebooks/test_notebooks.py
holds that a notebook is its source as it was run.
"""

from __future__ import annotations

import base64
import hashlib
import io
import sys
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from nbclient import NotebookClient
from PIL import Image

FOLDER = Path(__file__).parent
NAMES = ("explore_a_sweep", "fit_and_forecast", "replicate_chinchilla", "downstream_accuracy", "how_much_compute")


def source(path: Path) -> Any:
    """The notebook of a source, without outputs; cells are named by their place, so that equal sources are equal."""
    notebook = jupytext.read(path, fmt="py:percent")
    for place, cell in enumerate(notebook.cells):
        cell.id = f"cell-{place}"
        cell.metadata = {}
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata = {"kernelspec": kernel, "source_sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    return notebook


def built(path: Path) -> Any:
    """The same with its outputs. Raises CellExecutionError where a cell fails, ValueError where one warns."""
    notebook = source(path)
    NotebookClient(notebook, kernel_name="python3", timeout=600, resources={"metadata": {"path": FOLDER}}).execute()
    kernel = notebook.metadata["kernelspec"]
    notebook.metadata = {"kernelspec": kernel, "source_sha256": notebook.metadata["source_sha256"]}
    for cell in notebook.cells:
        cell.metadata = {}
        for output in cell.get("outputs", ()):
            if output.get("name") == "stderr":
                raise ValueError(f"{path}: a cell wrote to stderr: {output['text']}")
            if "image/png" in output.get("data", {}):
                output["data"]["image/png"] = small(output["data"]["image/png"])
    return notebook


def small(png: str) -> str:
    """The same picture in 128 colours, which no eye tells from it: a third of the bytes. In base64, in and out."""
    content = io.BytesIO()
    Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB").quantize(128).save(content, "png", optimize=True)
    return base64.b64encode(content.getvalue()).decode()


if __name__ == "__main__":
    for name in sys.argv[1:] or NAMES:
        nbformat.write(built(FOLDER / f"{name}.py"), FOLDER / f"{name}.ipynb")
        print(f"{name}.ipynb: {(FOLDER / f'{name}.ipynb').stat().st_size // 1024} KiB")
