"""Experiment trackers: TensorBoard and Weights & Biases. `scaling track` sends them what a run folder holds.

Their packages are extras, which only this module imports, and only when a tracker is used.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

from scaling.config.run_config import RunConfig, to_dict
from scaling.errors import InputError

TrackerName = Literal["tensorboard", "wandb"]
HEADLINE_COLUMNS = ("loss", "bits_per_byte", "seconds", "tokens_per_second")


class TrackedRun(Protocol):
    """A run in a tracker, open for writing."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Sends the numbers of a step. Steps never decrease."""
        ...

    def flush(self) -> None:
        """Returns when everything logged has left this process."""
        ...

    def log_result(self, step: int, result: Mapping[str, Any]) -> None:
        """Sends the content of result.json."""
        ...

    def close(self, failed: bool) -> None:
        """Ends the session. failed: whether the run failed."""
        ...


OpenTrackedRun = Callable[[Path, RunConfig], TrackedRun]
"""(run folder, config) -> the run, open in a tracker."""


def load_tracker(tracker: TrackerName, project: str) -> OpenTrackedRun:
    """The function that opens runs in a tracker. project: of W&B. Raises InputError when its package is not
    installed."""
    try:
        importlib.import_module("wandb" if tracker == "wandb" else "tensorboard.summary.writer.record_writer")
    except ImportError as error:
        raise InputError(f"{tracker}: {error}; pip install 'scaling-laws[{tracker}]' brings it") from None
    return TensorBoard if tracker == "tensorboard" else lambda run, config: WandB(run, config, project)


class TensorBoard:
    """A run's event file, written record by record: TensorBoard's own writer imports TensorFlow where it is
    installed."""

    def __init__(self, run: Path, config: RunConfig) -> None:
        folder = run / "tensorboard" / (re.sub(r"[^\w.=-]+", "_", config.name) or run.name)
        folder.mkdir(parents=True, exist_ok=True)
        first = not any(folder.iterdir())
        self.file = (folder / f"events.out.tfevents.{time.time_ns() // 1000:017}.{os.getpid()}").open("xb")
        self.records = _module("summary.writer.record_writer").RecordWriter(self.file)
        self._write(file_version="brain.Event:2")
        if first:
            self._text(0, "config", json.dumps(to_dict(config), indent=1))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._summary(step, [{"tag": name, "simple_value": value} for name, value in values.items()])

    def log_result(self, step: int, result: Mapping[str, Any]) -> None:
        row = {name: result["row"].get(name) for name in HEADLINE_COLUMNS}
        values = row | {name: value for name, (value, _, _) in result["measurements"].items()}
        self.log(step, {f"result/{name}": value for name, value in values.items() if value is not None})
        self._text(step, "result", f"{result['status']} {result['reason']}".strip())

    def _text(self, step: int, tag: str, text: str) -> None:
        tensor = _module("compat.proto.tensor_pb2").TensorProto(dtype="DT_STRING", string_val=[text.encode()])
        self._summary(step, [{"tag": tag, "tensor": tensor, "metadata": {"plugin_data": {"plugin_name": "text"}}}])

    def _summary(self, step: int, values: list[dict[str, Any]]) -> None:
        self._write(step=step, summary=_module("compat.proto.summary_pb2").Summary(value=values))

    def _write(self, **fields: Any) -> None:
        event = _module("compat.proto.event_pb2").Event(wall_time=time.time(), **fields)
        self.records.write(event.SerializeToString())

    def flush(self) -> None:
        self.file.flush()

    def close(self, failed: bool) -> None:
        self.file.close()


def _module(name: str) -> Any:
    """A module of TensorBoard, as Any: it builds its message classes at import, where no type checker sees them."""
    return importlib.import_module(f"tensorboard.{name}")


class WandB:
    """A run on W&B under its own run_id, so that a later session continues the same one."""

    def __init__(self, run: Path, config: RunConfig, project: str) -> None:
        import wandb

        try:
            self.run = wandb.init(
                project=project or os.environ.get("WANDB_PROJECT") or config.sweep or "scaling-laws",
                id=run.name,
                name=config.name or run.name,
                group=config.sweep or None,
                config=to_dict(config),
                dir=os.environ.get("WANDB_DIR") or str(run),
                resume="allow",
                reinit="create_new",
                settings=wandb.Settings(silent=True, console="off"),
            )
        except wandb.errors.Error as error:
            message = " ".join(str(error).split())
            raise InputError(f"wandb: {message}; log in, or set WANDB_MODE=offline and sync later") from None

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)

    def log_result(self, step: int, result: Mapping[str, Any]) -> None:
        values = {name: value for name, (value, _, _) in result["measurements"].items()}
        row = {name: value for name, value in result["row"].items() if value is not None}
        self.run.summary.update(row | values | {"status": result["status"], "reason": result["reason"]})

    def flush(self) -> None:
        """Does nothing: W&B's own process has what was logged."""

    def close(self, failed: bool) -> None:
        self.run.finish(exit_code=int(failed))
