"""Checkpoints with Orbax: written asynchronously and restored onto any mesh.

Orbax writes a step under a temporary name and renames it when it is whole, so that neither a kill nor a full disk
harms the checkpoint before it. A step holds the checksums of its files (checksums.py).
"""

from __future__ import annotations

import errno
import functools
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
import tensorstore
from orbax.checkpoint._src.serialization import tensorstore_utils

from scaling.errors import DiskFullError, InputError, exception_chain
from scaling.files import has_locks
from scaling.model.weights import path_name
from scaling.training import checksums
from scaling.training.checksums import DamagedCheckpointError
from scaling.training.out_of_memory import first_line, is_out_of_memory

# Orbax's threads log their errors and raise them here too; the exception is enough.
logging.getLogger("absl").setLevel(logging.CRITICAL)

MAX_LISTED = 8
METADATA_BYTES = 262_144
"""Upper bound on Orbax's own metadata in a checkpoint."""
FULL_DISK_MESSAGES = ("No space left", f"os_error_code='{errno.ENOSPC}'")
"""In messages of TensorStore."""
RENAME_IT = "rename it (add .damaged to its name), and the same command goes on from the one before"


class ChecksummedHandler(ocp.StandardCheckpointHandler):
    """Orbax's handler of a tree of arrays, which also writes checksums."""

    def finalize(self, directory: Any) -> None:
        """Called in process 0 when every process has written its files, and before Orbax renames the folder."""
        super().finalize(directory)
        checksums.write_checksums(Path(directory))


@ocp.args.register_with_handler(ChecksummedHandler, for_save=True)
class ChecksummedSave(ocp.args.StandardSave):
    """How Orbax learns that ChecksummedHandler saves these."""


@ocp.args.register_with_handler(ChecksummedHandler, for_restore=True)
class ChecksummedRestore(ocp.args.StandardRestore):
    """How Orbax learns that ChecksummedHandler restores these."""


class Checkpoints:
    """The checkpoints of one folder, one per step: the last `keep` of them, or all. A context manager, which waits for
    unfinished writes when it is left."""

    def __init__(self, folder: Path, keep: int | None, *, read_only: bool = False) -> None:
        """read_only: do not delete the unfinished checkpoints of another process that writes there."""
        writing = functools.partial(ocp.CheckpointManagerOptions, max_to_keep=keep, cleanup_tmp_directories=True)
        options = ocp.CheckpointManagerOptions(read_only=True) if read_only else writing()
        self.folder = folder.absolute()
        if not read_only:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not has_locks(self.folder):
                _write_lock_files()
        self._manager = ocp.CheckpointManager(self.folder, options=options, item_handlers=ChecksummedHandler())

    def latest_step(self) -> int | None:
        """The step of the last whole checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any) -> None:
        """Starts to write a checkpoint, unless the folder has one of this step. Raises DiskFullError when there is no
        room for it, here or, where the disk fills up during the write, at the next call."""
        if step not in self._manager.all_steps():
            self._check_room(state)
            self._guard(lambda: self._manager.save(step, args=ChecksummedSave(state)))

    def wait(self) -> None:
        """Returns when all checkpoints are written. Raises DiskFullError when the disk is full."""
        self._guard(self._manager.wait_until_finished)
        self._guard(self._manager.check_for_errors)

    def restore(self, step: int, abstract_state: Any) -> Any:
        """The state of `step`, laid out as the shardings in `abstract_state` say. Does not compare checksums.

        Raises InputError naming each leaf whose presence or shape differs, and DamagedCheckpointError where Orbax
        cannot read a step that has no checksums.
        """
        path = self.folder / str(step)
        try:
            saved = self._manager.item_metadata(step)
            differences = tree_differences(saved, abstract_state)
            if not differences:
                return self._manager.restore(step, args=ChecksummedRestore(abstract_state))
        except Exception as error:
            if checksums.has_checksums(path) or is_out_of_memory(error):
                raise
            raise DamagedCheckpointError(path, first_line(error), RENAME_IT) from error
        if not jax.tree.leaves(saved):
            raise DamagedCheckpointError(path, "it lists no arrays", RENAME_IT)
        more = f"; and {len(differences) - MAX_LISTED} more" if len(differences) > MAX_LISTED else ""
        listed = "; ".join(differences[:MAX_LISTED])
        raise InputError(f"{path}: the checkpoint is of another model: {listed}{more}")

    def set_aside(self, step: int, reason: str) -> None:
        """Renames a damaged checkpoint, so that the one before it is the latest."""
        checksums.set_aside(self.folder / str(step), reason)
        self._manager.reload()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        """Waits for unfinished writes."""
        self._guard(self._manager.close)

    def _check_room(self, state: Any) -> None:
        needed = METADATA_BYTES + sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise self._full(f"{needed / 1e6:.1f} MB needed, {free / 1e6:.1f} MB free")

    def _full(self, detail: str) -> DiskFullError:
        latest = self.latest_step()
        last_whole = f"the one at step {latest} is whole" if latest is not None else "there is none before it"
        return DiskFullError(
            f"{self.folder}: no space left for a checkpoint ({detail}); {last_whole}: "
            "free some space and run the same command again"
        )

    def _guard(self, call: Callable[[], Any]) -> None:
        """Calls a function of Orbax; turns its errors about a full disk into DiskFullError."""
        try:
            call()
        except Exception as error:
            if is_full_disk(error):
                raise self._full("the disk filled up while it was written") from error
            raise


@functools.cache
def _write_lock_files() -> None:
    """Has TensorStore lock a file by another one beside it, created with O_EXCL, for disks that refuse its own locks
    (ENOLCK). Orbax passes no such option on, so the function with which it makes the options is wrapped."""
    make_context = tensorstore_utils.get_ts_context

    def with_lock_files(**options: Any) -> tensorstore.Context:
        spec = make_context(**options).spec.to_json()
        return tensorstore.Context(spec | {"file_io_locking": {"mode": "lockfile"}})

    tensorstore_utils.get_ts_context = with_lock_files


def is_full_disk(error: BaseException) -> bool:
    """Whether an error, or one in its chain, says that the disk is full."""
    return any(
        getattr(link, "errno", None) == errno.ENOSPC or any(message in str(link) for message in FULL_DISK_MESSAGES)
        for link in exception_chain(error)
    )


def tree_differences(saved: Any, expected: Any) -> list[str]:
    """One text for each leaf that only one of two trees has, or whose shapes differ."""
    saved_shapes, expected_shapes = _leaf_shapes(saved), _leaf_shapes(expected)
    return [
        f"{path}: checkpoint {saved_shapes.get(path, 'has none')}, config {expected_shapes.get(path, 'has none')}"
        for path in sorted(saved_shapes.keys() | expected_shapes.keys())
        if saved_shapes.get(path) != expected_shapes.get(path)
    ]


def _leaf_shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {path_name(path): tuple(leaf.shape) for path, leaf in leaves}
