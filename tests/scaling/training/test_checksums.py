from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from scaling.errors import InputError
from scaling.training import checksums
from scaling.training.checksums import find_damage, saved_steps, set_aside, set_damaged_aside

STATE = bytes(range(256))


def write_step(folder: Path, step: int, handler: str = checksums.HANDLER) -> Path:
    """A step as Orbax and write_checksums leave it: two data files and Orbax's own."""
    step_folder = folder / str(step)
    item = step_folder / checksums.ITEM
    (item / "ocdbt.process_1" / "d").mkdir(parents=True)
    (item / "_METADATA").write_text("{}")
    (item / "ocdbt.process_1" / "d" / "c3").write_bytes(STATE)
    (step_folder / checksums.STEP_METADATA).write_text(f'{{"item_handlers": {{"default": "{handler}"}}}}')
    checksums.write_checksums(item)
    return step_folder


@pytest.fixture
def step_folder(tmp_path: Path) -> Path:
    return write_step(tmp_path, 8)


def test_a_step_is_whole_as_written_and_where_it_is_copied(step_folder: Path, tmp_path: Path) -> None:
    assert find_damage(step_folder) == ""
    assert find_damage(shutil.copytree(step_folder, tmp_path / "elsewhere" / "8")) == ""
    (step_folder / checksums.ITEM / ".nfs0001").write_text("a stray file")
    assert find_damage(step_folder) == ""


def test_every_flipped_bit_is_named(step_folder: Path) -> None:
    path = step_folder / checksums.ITEM / "ocdbt.process_1" / "d" / "c3"
    for bit in range(0, 8 * len(STATE), 7):
        flipped = bytearray(STATE)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        assert "default/ocdbt.process_1/d/c3" in find_damage(step_folder), bit
    path.write_bytes(STATE)
    assert find_damage(step_folder) == ""


def test_damage_of_the_checksums_themselves_is_damage(step_folder: Path) -> None:
    path = step_folder / checksums.ITEM / checksums.CHECKSUMS
    text = path.read_bytes()
    for bit in range(8 * text.index(b'"files"'), 8 * len(text.rstrip()), 5):
        flipped = bytearray(text)
        flipped[bit // 8] ^= 1 << bit % 8
        if flipped.split() != text.split():  # another white space means the same
            path.write_bytes(flipped)
            assert find_damage(step_folder), bit


DAMAGES: dict[str, Callable[[Path], object]] = {
    "_METADATA": lambda step: (step / checksums.ITEM / "_METADATA").unlink(),
    "c3": lambda step: os.truncate(step / checksums.ITEM / "ocdbt.process_1" / "d" / "c3", 100),
    "default": lambda step: shutil.rmtree(step / checksums.ITEM),
    "ocdbt.process_1": lambda step: shutil.rmtree(step / checksums.ITEM / "ocdbt.process_1"),
    "checksums.json": lambda step: (step / checksums.ITEM / checksums.CHECKSUMS).unlink(),
    "default/checksums.json": lambda step: (step / checksums.ITEM / checksums.CHECKSUMS).write_text("[1]"),
    "_CHECKPOINT_METADATA": lambda step: [path.unlink() for path in step.rglob("*") if path.is_file()],
}


@pytest.mark.parametrize("name", DAMAGES)
def test_what_is_lost_or_cut_is_named(step_folder: Path, name: str) -> None:
    DAMAGES[name](step_folder)
    assert name in find_damage(step_folder)


def test_a_step_of_an_earlier_version_is_unchecked_and_noted_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = [write_step(tmp_path, step, "orbax...StandardCheckpointHandler") for step in (1, 2)]
    for step in steps:
        (step / checksums.ITEM / checksums.CHECKSUMS).unlink()
        assert find_damage(step) == ""
    assert len(capsys.readouterr().err.splitlines()) <= 1


def test_a_file_that_may_not_be_read_is_no_damage(step_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> list[int]:
        raise PermissionError(13, os.strerror(13), str(path))

    monkeypatch.setattr(checksums, "checksum", refuse)
    with pytest.raises(InputError, match=f"{step_folder}/default/"):
        find_damage(step_folder)


def test_damaged_steps_are_renamed_up_to_the_first_that_is_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = {step: write_step(tmp_path, step) for step in (8, 16, 24, 32)}
    for step in (8, 24, 32):
        (steps[step] / checksums.ITEM / "_METADATA").unlink()
    set_damaged_aside(steps[step] for step in (32, 24, 16, 8))
    assert saved_steps(tmp_path) == [8, 16]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["16", "24.damaged", "32.damaged", "8"]
    named = capsys.readouterr().err.splitlines()
    assert len(named) == 2
    assert all(word in named[0] for word in ("/32:", "32.damaged", "_METADATA"))


def test_a_second_damaged_step_of_a_name_gets_another_name(tmp_path: Path) -> None:
    for _ in range(3):
        set_aside(write_step(tmp_path, 8), "gone")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["8.damaged", "8.damaged.2", "8.damaged.3"]
    assert checksums.has_been_set_aside(tmp_path / "8")
    assert not checksums.has_been_set_aside(tmp_path / "16")
    set_aside(tmp_path / "8", "another process was faster")
