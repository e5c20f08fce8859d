"""What several test modules share: small corpora, small configs, subprocesses."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from scaling.config import DataConfig, MeasureConfig, ModelConfig, OptimizerConfig, RunConfig, ScheduleConfig
from scaling.prepare import prepare

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The public tables; tests that read them skip where they are not."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("public tables absent: no ../shared/data beside this checkout")
    return folder


@pytest.fixture(scope="session")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `walk` is prepared by the plain road, so that training tests take no seconds for data."""
    folder = tmp_path_factory.mktemp("corpora")
    prepare("walk", folder, road="plain")
    return folder


@pytest.fixture(scope="session")
def tiny(corpora: Path) -> RunConfig:
    """A run of a second: 32 steps of 8 x 32 tokens."""
    return RunConfig(
        model=ModelConfig(width=32, depth=2, heads=2),
        data=DataConfig(corpus="walk", sequence_length=32, batch_sequences=8, directory=str(corpora)),
        optimizer=OptimizerConfig(learning_rate=1e-2),
        schedule=ScheduleConfig(warmup_tokens=1024),
        measure=MeasureConfig(validation_tokens=2048, log_every_steps=1, checkpoint_every_tokens=2048),
        tokens=32 * 8 * 32,
    )


def scaling(*arguments: object, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs `scaling ...` as a user would, from `cwd`."""
    return subprocess.run(
        [sys.executable, "-m", "scaling.cli", *map(str, arguments)],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
