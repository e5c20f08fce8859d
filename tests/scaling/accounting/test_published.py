"""Published models by first principles, against the counts of accounting.py and against the talk."""

from __future__ import annotations

from pathlib import Path

import pytest

from scaling.accounting import counts
from scaling.accounting.model_shapes import PUBLISHED_MODELS
from scaling.accounting.published import published_arithmetic
from tests.conftest import in_process


@pytest.mark.parametrize("name", PUBLISHED_MODELS)
def test_the_sum_is_what_accounting_counts(name: str) -> None:
    lines = {line.what: line.value for line in published_arithmetic(PUBLISHED_MODELS[name])}
    assert lines["parameters"] == counts.count_params(PUBLISHED_MODELS[name].model).total
    assert lines["parameters file"] == pytest.approx(2 * lines["parameters"] / 1e9)


def test_the_talk(tmp_path: Path) -> None:
    """Karpathy 2023: a 140 GB file out of 10 TB of text by 6,000 GPUs in 12 days."""
    done = in_process("cost", "llama-2-70b", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    for text in (
        "68,976,648,192",
        "137.95 GB",
        "8.28e+23 FLOPs",
        "6,000 GPUs x 12 days x 24 hours",
        "1,728,000",
        "10 TB / 140 GB",
        "71 x",
        "42.6 %",
    ):
        assert text in said, text


def test_a_model_whose_training_is_not_published_is_counted_all_the_same(tmp_path: Path) -> None:
    said = in_process("cost", "llama-3-8b", cwd=tmp_path).stdout
    assert "8,030,261,248" in said
    counted, trained = (
        {line.what for line in published_arithmetic(PUBLISHED_MODELS[name])} for name in ("llama-3-8b", "llama-2-70b")
    )
    assert len(trained - counted) == 4
    assert not any(what in said for what in trained - counted)
