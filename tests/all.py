"""The whole suite: tests/cluster in one process, which mostly waits for schedulers, beside all else in another.

    python tests/all.py

The output of the second is shown as it comes, that of the first at the end. Ends with the worse exit code of the two.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).parent
PYTEST = (sys.executable, "-m", "pytest")


def main() -> int:
    with tempfile.TemporaryFile("w+") as said:
        apart = ("-o", f"cache_dir={TESTS.parent / '.pytest_cache' / 'cluster'}")
        cluster = subprocess.Popen((*PYTEST, *apart, TESTS / "cluster"), stdout=said, stderr=said, cwd=TESTS.parent)
        try:
            rest = subprocess.run((*PYTEST, f"--ignore={TESTS / 'cluster'}"), cwd=TESTS.parent).returncode
            code = cluster.wait()
        except BaseException:
            cluster.terminate()
            cluster.wait()
            raise
        said.seek(0)
        print(said.read(), end="")
    return max(rest, code)


if __name__ == "__main__":
    sys.exit(main())
