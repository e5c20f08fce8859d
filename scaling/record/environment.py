"""What a run ran on: versions, devices and commit, as environment.json records them."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ENVIRONMENT_SCHEMA = 1


def describe_environment(kernel: str) -> dict[str, Any]:
    """The content of environment.json: versions, devices, commit, and `kernel`, the attention kernel that runs."""
    import jax

    return {
        "schema": ENVIRONMENT_SCHEMA,
        "python": platform.python_version(),
        "packages": {
            name: package_version(name) for name in ("scaling-laws", "jax", "jaxlib", "flax", "optax", "numpy")
        },
        "platform": platform.platform(),
        "devices": [str(device.device_kind) for device in jax.devices()],
        "processes": jax.process_count(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "commit": git_commit(),
        "attention_kernel": kernel,
    }


def package_version(name: str) -> str | None:
    """The version of an installed package; None where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


@functools.cache
def git_commit() -> str | None:
    """The commit of the checkout that this code runs from, with "+dirty" where files differ; None outside git."""
    here = Path(__file__).parent
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
        changed = subprocess.run(["git", "diff", "--quiet", "HEAD"], cwd=here, capture_output=True).returncode
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+dirty" if changed else "")
