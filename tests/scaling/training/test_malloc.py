from __future__ import annotations

import subprocess
import sys

import pytest

from scaling.training.malloc import is_cpu_only

FAULTS = """
import resource, sys
from scaling.training.malloc import keep_freed_pages
if sys.argv[1] == "keep" and not keep_freed_pages():
    sys.exit("not here")
import jax, jax.numpy as jnp
step = jax.jit(lambda x: (jnp.tanh(x @ x.T) @ x).sum())
x = jnp.ones((4000, 8))
for _ in range(3):
    step(x).block_until_ready()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step(x).block_until_ready()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    """Pages that the system gave the process during five calls with 64 MB of temporaries."""
    done = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True)
    if "not here" in done.stderr:
        pytest.skip("no glibc, or an accelerator: nothing to keep")
    assert done.returncode == 0, done.stderr[-2000:]
    return int(done.stdout)


def test_kept_pages_save_page_faults_at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert faults("keep") < 0.2 * faults("as it is")


@pytest.mark.parametrize(("asked", "answer"), [("cpu", True), ("cuda,cpu", False), ("tpu", False)])
def test_jax_platforms_decides_whether_only_cpus_are_used(
    monkeypatch: pytest.MonkeyPatch, asked: str, answer: bool
) -> None:
    monkeypatch.setenv("JAX_PLATFORMS", asked)
    assert is_cpu_only() is answer
