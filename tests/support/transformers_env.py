"""Makes the environment in which test_export.py tries an export in transformers: python
tests/support/transformers_env.py

torch and transformers go into .pytest_cache/transformers, apart from what this repository needs: some 5 GB where pip's
torch is the CUDA build, minutes to fetch. TRANSFORMERS_PYTHON names another Python that has both.
"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

FOLDER = Path(__file__).parents[2] / ".pytest_cache" / "transformers"
COMMAND = "python tests/support/transformers_env.py"


def interpreter() -> str | None:
    """A Python with torch and transformers; None where nobody has made one."""
    named = os.environ.get("TRANSFORMERS_PYTHON")
    return named or (str(FOLDER / "bin" / "python") if (FOLDER / "made").exists() else None)


def main() -> None:
    venv.create(FOLDER, with_pip=True, clear=True)
    python = str(FOLDER / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "--quiet", "torch", "transformers", "numpy"], check=True)
    subprocess.run([python, "-c", "import torch, transformers"], check=True)
    (FOLDER / "made").touch()
    print(f"made {FOLDER}: test_export.py now tries exports there")


if __name__ == "__main__":
    sys.exit(main())
