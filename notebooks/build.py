"""Runs the notebooks from their sources and writes them with their outputs: `python notebooks/build.py [NAME ...]`.

Edit and review the sources (jupytext, py:percent). The .ipynb beside each is for reading on GitHub; it holds no
timestamps, versions or paths of the machine that ran it, and no output on stderr. tests/notebooks/test_notebooks.py
checks that the two agree.
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


def read_source(path: Path) -> Any:
    """Reads a source as a notebook without outputs. Cells are numbered, so that equal sources give equal notebooks."""
    notebook = jupytext.read(path, fmt="py:percent")
    for index, cell in enumerate(notebook.cells):
        cell.id = f"cell-{index}"
        cell.metadata = {}
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata = {"kernelspec": kernel, "source_sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    return notebook


def execute(path: Path) -> Any:
    """Runs a source and returns the notebook with its outputs.

    Raises CellExecutionError if a cell fails, and ValueError if one writes to stderr.
    """
    notebook = read_source(path)
    NotebookClient(notebook, kernel_name="python3", timeout=600, resources={"metadata": {"path": FOLDER}}).execute()
    kernel = notebook.metadata["kernelspec"]
    notebook.metadata = {"kernelspec": kernel, "source_sha256": notebook.metadata["source_sha256"]}
    for cell in notebook.cells:
        cell.metadata = {}
        for output in cell.get("outputs", ()):
            if output.get("name") == "stderr":
                raise ValueError(f"{path}: a cell wrote to stderr: {output['text']}")
            if "image/png" in output.get("data", {}):
                output["data"]["image/png"] = compress_png(output["data"]["image/png"])
    return notebook


def compress_png(png: str) -> str:
    """Reduces a picture to 128 colours, a third of the bytes and no visible difference. Takes and returns base64."""
    content = io.BytesIO()
    Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB").quantize(128).save(content, "png", optimize=True)
    return base64.b64encode(content.getvalue()).decode()


if __name__ == "__main__":
    for name in sys.argv[1:] or NAMES:
        nbformat.write(execute(FOLDER / f"{name}.py"), FOLDER / f"{name}.ipynb")
        print(f"{name}.ipynb: {(FOLDER / f'{name}.ipynb').stat().st_size // 1024} KiB")
