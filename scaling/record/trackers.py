"""Where runs can be shown: TensorBoard, Weights & Biases. `scaling track` (track_verb.py) sends them what files hold.

Their packages are extras, imported here alone and only when asked for.
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
    """A run in a tracker."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of a step, which is not below any before."""
        ...

    def flush(self) -> None:
        """Returns when what was logged is out of this process."""
        ...

    def log_result(self, step: int, result: Mapping[str, Any]) -> None:
        """What result.json says."""
        ...

    def close(self, failed: bool) -> None: ...


OpenTrackedRun = Callable[[Path, RunConfig], TrackedRun]
"""Opens a run, by its folder and config, in a tracker."""


def load_tracker(tracker: TrackerName, project: str) -> OpenTrackedRun:
    """What opens a run in a tracker. Raises InputError when its package is not installed."""
    try:
        importlib.import_module("wandb" if tracker == "wandb" else "tensorboard.summary.writer.record_writer")
    except ImportError as error:
        raise InputError(f"{tracker}: {error}; pip install 'scaling-laws[{tracker}]' brings it") from None
    return TensorBoard if tracker == "tensorboard" else lambda run, config: WandB(run, config, project)


class TensorBoard:
    """A run's event file. Written by record, because TensorBoard's own writer imports TensorFlow where that is."""

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
        found = row | {name: value for name, (value, _, _) in result["measurements"].items()}
        self.log(step, {f"result/{name}": value for name, value in found.items() if value is not None})
        self._text(step, "result", f"{result['status']} {result['reason']}".strip())

    def _text(self, step: int, tag: str, text: str) -> None:
        told = _module("compat.proto.tensor_pb2").TensorProto(dtype="DT_STRING", string_val=[text.encode()])
        self._summary(step, [{"tag": tag, "tensor": told, "metadata": {"plugin_data": {"plugin_name": "text"}}}])

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
    """Of TensorBoard; its messages are made when it is imported, so that no type checker knows them."""
    return importlib.import_module(f"tensorboard.{name}")


class WandB:
    """A run on W&B, under the run's own id: what is sent later goes to the same one."""

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
            said = " ".join(str(error).split())
            raise InputError(f"wandb: {said}; log in, or set WANDB_MODE=offline and sync later") from None

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)

    def log_result(self, step: int, result: Mapping[str, Any]) -> None:
        found = {name: value for name, (value, _, _) in result["measurements"].items()}
        row = {name: value for name, value in result["row"].items() if value is not None}
        self.run.summary.update(row | found | {"status": result["status"], "reason": result["reason"]})

    def flush(self) -> None:
        """Its own process has it."""

    def close(self, failed: bool) -> None:
        self.run.finish(exit_code=int(failed))
