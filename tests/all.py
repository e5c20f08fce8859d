"""The whole suite, in two processes at once: the tests that mostly wait for other processes, and all others. Files are
dealt out so that both take about as long.

    python tests/all.py

The output of the others is shown as it comes, that of the first at the end. Ends with the worse exit code of the two.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).parent
WAITING = (
    "cluster",
    "scaling/training/test_multihost.py",
    "sweeps/clusters/test_slice_worker.py",
    "scaling/training/test_out_of_memory.py",
    "scaling/commands/test_data.py",
    "scaling/data/test_seqio_corpora.py",
    "scaling/measurements/test_seqio_tasks.py",
    "docs/test_demo.py",
    "docs/test_docs.py",
    "notebooks/test_notebooks.py",
)
PYTEST = (sys.executable, "-m", "pytest")


def main() -> int:
    apart = ("-o", f"cache_dir={TESTS.parent / '.pytest_cache' / 'waiting'}")
    paths = [str(TESTS / name) for name in WAITING]
    with tempfile.TemporaryFile("w+") as said:
        waiting = subprocess.Popen((*PYTEST, *apart, *paths), stdout=said, stderr=said, cwd=TESTS.parent)
        try:
            others = subprocess.run((*PYTEST, *(f"--ignore={path}" for path in paths)), cwd=TESTS.parent).returncode
            code = waiting.wait()
        except BaseException:
            waiting.terminate()
            waiting.wait()
            raise
        said.seek(0)
        print(said.read(), end="")
    return max(others, code)


if __name__ == "__main__":
    sys.exit(main())
