from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaling import files
from scaling.errors import DiskFullError, InputError
from scaling.exit_codes import DISK_FULL
from scaling.training import checksums
from scaling.training.checkpoints import Checkpoints, is_full_disk
from scaling.training.checksums import DamagedCheckpointError
from tests.conftest import ROOT


def state(width: int, fill: float = 1.0) -> dict[str, dict[str, jax.Array]]:
    return {"params": {"q": jnp.full((width, 2), fill), "norm": jnp.ones(width)}}


def test_the_last_checkpoints_stay_and_are_restored_bit_for_bit(tmp_path: Path) -> None:
    with Checkpoints(tmp_path / "c", keep=2) as checkpoints:
        assert checkpoints.latest_step() is None
        for step in (1, 2, 3):
            checkpoints.save(step, state(4, step / 3))
        checkpoints.wait()
    with Checkpoints(tmp_path / "c", keep=2) as checkpoints:
        assert checkpoints.latest_step() == 3
        restored = checkpoints.restore(3, jax.eval_shape(lambda: state(4)))
        np.testing.assert_array_equal(restored["params"]["q"], np.float32(1.0) * np.full((4, 2), np.float32(3 / 3)))
        np.testing.assert_array_equal(
            checkpoints.restore(2, jax.eval_shape(lambda: state(4)))["params"]["q"][0, 0], np.float32(2 / 3)
        )
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["2", "3"]


def test_a_checkpoint_of_another_model_is_refused_with_the_leaves_that_differ(tmp_path: Path) -> None:
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, state(4))
        checkpoints.wait()
        wanted = {"params": {"q": jnp.ones((8, 2)), "norm": jnp.ones(4), "k": jnp.ones(3)}}
        with pytest.raises(InputError) as error:
            checkpoints.restore(1, jax.eval_shape(lambda: wanted))
    text = str(error.value)
    assert re.search(r"params/q\b.*\(4, 2\).*\(8, 2\)", text)
    assert re.search(r"params/k\b.*\(3,\)", text)
    assert "params/norm" not in text
    assert "\n" not in text


def test_a_step_has_the_checksums_of_all_that_orbax_wrote_when_it_gets_its_name(tmp_path: Path) -> None:
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        checkpoints.save(1, state(4))
    item = tmp_path / "1" / checksums.ITEM
    written = {path.relative_to(item).as_posix() for path in item.rglob("*") if path.is_file()}
    listed = files.read_json(item / checksums.CHECKSUMS)["files"].keys()
    assert written - listed == {checksums.CHECKSUMS, "commit_success.txt"}
    assert checksums.find_damage(tmp_path / "1") == ""


def test_a_step_whose_checksums_cannot_be_written_gets_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        checkpoints.save(1, state(4))

    def fail(item: Path) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(checksums, "write_checksums", fail)
    with pytest.raises(DiskFullError), Checkpoints(tmp_path, keep=2) as checkpoints:  # noqa: PT012
        checkpoints.save(2, state(4))
        checkpoints.wait()
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert checkpoints.latest_step() == 1


def test_a_step_without_checksums_is_restored_or_named_as_damaged(tmp_path: Path) -> None:
    """As an earlier version wrote it."""
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        checkpoints.save(1, state(4))
    item, abstract = tmp_path / "1" / checksums.ITEM, jax.eval_shape(lambda: state(4))
    (item / checksums.CHECKSUMS).unlink()
    metadata = tmp_path / "1" / checksums.STEP_METADATA
    metadata.write_text(metadata.read_text().replace(checksums.HANDLER, "StandardCheckpointHandler"))
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        np.testing.assert_array_equal(checkpoints.restore(1, abstract)["params"]["norm"], np.ones(4))
        for damage in (lambda: (item / "_METADATA").write_text(""), (item / "_METADATA").unlink):
            damage()
            with pytest.raises(DamagedCheckpointError, match=f"{tmp_path}/1:") as error:
                checkpoints.restore(1, abstract)
            assert "\n" not in str(error.value)
        checkpoints.set_aside(1, "lost")
        assert checkpoints.latest_step() is None
        checkpoints.save(1, state(4))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "1.damaged"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 4 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"cannot mount a small file system here (needs root on Linux): {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.parametrize("foreseen", [True, False])
def test_a_full_disk_is_an_error_of_one_line_and_the_last_checkpoint_stays_whole(
    small_disk: Path, foreseen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not foreseen:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2**40))
    noise = np.random.default_rng(0).normal(size=(160_000, 2))
    fits = {"q": jnp.asarray(noise, jnp.float32)}
    larger = {"q": jnp.asarray(np.random.default_rng(1).normal(size=(800_000, 2)), jnp.float32)}
    with pytest.raises(DiskFullError) as error, Checkpoints(small_disk / "c", keep=5) as checkpoints:  # noqa: PT012
        checkpoints.save(1, fits)
        checkpoints.wait()
        checkpoints.save(2, larger)
        checkpoints.wait()
    assert error.value.code == DISK_FULL
    assert (error.value.__cause__ is None) is foreseen, "what was not foreseen comes of the system's own error"
    assert ("6.7 MB" in str(error.value)) is foreseen
    assert str(small_disk / "c") in str(error.value)
    assert "step 1 " in str(error.value)
    assert "\n" not in str(error.value)
    with Checkpoints(small_disk / "c", keep=5) as checkpoints:
        assert checkpoints.latest_step() == 1
        restored = checkpoints.restore(1, jax.eval_shape(lambda: fits))
    np.testing.assert_array_equal(restored["q"], fits["q"])


SAVE_AND_RESTORE = """
import sys, jax, jax.numpy as jnp
from pathlib import Path
from scaling.training.checkpoints import Checkpoints
state = {"params": jnp.arange(6.0)}
with Checkpoints(Path(sys.argv[1]) / "c", keep=1) as checkpoints:
    for step in (1, 2):
        checkpoints.save(step, state)
        checkpoints.wait()
    print(checkpoints.restore(2, jax.eval_shape(lambda: state))["params"].sum())
"""


@pytest.mark.skipif(shutil.which("cc") is None or sys.platform != "linux", reason="needs a C compiler on Linux")
def test_a_checkpoint_is_saved_on_a_disk_without_locks(tmp_path: Path) -> None:
    """The library refuses the locks of TensorStore, which is no Python: see tests/support/no_locks.c."""
    library, disk = tmp_path / "no_locks.so", tmp_path / "disk"
    source = ROOT / "tests" / "support" / "no_locks.c"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    disk.mkdir()
    environment = {"LD_PRELOAD": str(library), "NO_LOCKS_FOLDER": str(disk), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", SAVE_AND_RESTORE, disk],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "15.0"), done.stderr[-2000:]


def test_is_full_disk_tells_it_from_other_errors() -> None:
    assert is_full_disk(OSError(28, os.strerror(28)))
    wrapped = ValueError("save failed")
    wrapped.__cause__ = OSError(28, "x")
    assert is_full_disk(wrapped)
    assert is_full_disk(ValueError("RESOURCE_EXHAUSTED: Error writing [os_error_code='28']"))
    assert not is_full_disk(OSError(13, "Permission denied"))
