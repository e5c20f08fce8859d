"""A trained model out of its run folder, on another device than it was trained on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import jax
import pytest

from scaling import files
from scaling.config.run_config import RunConfig, load_config, to_dict
from scaling.exit_codes import BAD_INPUT
from scaling.measurements.likelihood import ContextPair, score_pairs
from scaling.model.attention import Kernel
from scaling.record import run_folder
from scaling.training.checksums import DamagedCheckpointError
from scaling.training.restore import restore_model
from scaling.training.train import train


@pytest.mark.parametrize("kernel", ["cudnn", "splash"])
def test_a_run_of_a_kernel_that_cannot_run_here_is_restored(kernel: Kernel, tiny: RunConfig, tmp_path: Path) -> None:
    if jax.default_backend() != "cpu":
        pytest.skip("the kernel may run here")
    config = replace(tiny, tokens=8 * 8 * 32)
    assert train(config, tmp_path, quiet=True) == "done"
    plain = restore_model(tmp_path)
    named = replace(load_config(tmp_path / run_folder.CONFIG), model=replace(config.model, attention=kernel))
    files.write_json(tmp_path / run_folder.CONFIG, to_dict(named))
    found = restore_model(tmp_path)
    assert found.config.model.attention == kernel
    asked = [ContextPair([1, 5, 9], [4, 4])]
    nats, expected = (float(score_pairs(one.model, one.params, asked, 32).nats_P[0]) for one in (found, plain))
    assert nats == expected


def test_a_damaged_checkpoint_is_refused_with_the_steps_that_are_whole(tiny: RunConfig, tmp_path: Path) -> None:
    config = replace(tiny, tokens=24 * 8 * 32, measure=replace(tiny.measure, keep=3))
    run = tmp_path / "a run"
    assert train(config, run, quiet=True) == "done"
    place = run / run_folder.CHECKPOINTS
    for step in (16, 24):
        (place / str(step) / "default" / "_METADATA").unlink()
    for step in (None, 24):
        with pytest.raises(DamagedCheckpointError, match=rf"checkpoints/24:.*_METADATA.*\(8 .*mv '{run}/") as error:
            restore_model(run, step)
        assert error.value.code == BAD_INPUT
    (run / run_folder.RESULT).unlink()
    with pytest.raises(DamagedCheckpointError, match=f"scaling train --folder '{run}'$"):
        restore_model(run)
    assert restore_model(run, 8).step == 8
    assert sorted(path.name for path in place.iterdir()) == ["16", "24", "8"], "nothing is renamed"
