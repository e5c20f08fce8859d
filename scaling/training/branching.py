"""Shared trunks: a run starts from the state of another whose stable phase it shares, and ends as if it had trained
alone, bit for bit.

Under warm-up, stable, decay (Hu et al. 2024, MiniCPM, section 4; Haegele et al. 2024) runs that differ only in their
budget take the same steps until the cooldown of the shorter one: same weights, same batches, same learning rates. The
longest of them is trained whole and keeps its state where the others leave; each of those trains its own cooldown only.

    <trunk>/branches/<step>/     Orbax, one a step in `measure.branch_at_steps`; whole before any later checkpoint is

One judgement alone may differ: the count of steps on end above ln V (monitor.py) starts anew in a branch.

Not in the design's list of modules: the trainer, the population and the runner ask it where a run begins; the runner
without JAX, which is therefore imported where it is used.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from scaling.config.run_config import RunConfig, load_config
from scaling.errors import InputError
from scaling.record import run_folder


def trunk_folder(folder: Path, config: RunConfig) -> Path:
    """The run folder beside this one that a run branches from."""
    return folder.parent / config.branch_of


def has_branch_state(folder: Path, config: RunConfig) -> bool:
    """Whether the state that a run branches from is there, whole."""
    return (trunk_folder(folder, config) / run_folder.BRANCHES / str(config.branch_step)).is_dir()


def save_branch_state(folder: Path, config: RunConfig, step: int, state: Any) -> None:
    """Writes the state after `step` steps for others to branch from, if the config asks for it; returns when whole.

    It is waited for so that no later checkpoint can be whole while this one is not: a resumed run would not pass here
    again.
    """
    from scaling.training.checkpoints import Checkpoints

    if step in config.measure.branch_at_steps:
        with Checkpoints(folder / run_folder.BRANCHES, None) as kept:
            kept.save(step, state)


def restore_branch_state(folder: Path, config: RunConfig, abstract_state: Any) -> Any:
    """The state that a run branches from; its trunk's metrics up to there become this run's own. After `check`."""
    import jax

    from scaling.training.checkpoints import Checkpoints

    trunk = trunk_folder(folder, config)
    if jax.process_index() == 0:
        lines = [line for line in run_folder.read_metrics(trunk) if line["step"] <= config.branch_step]
        (folder / run_folder.METRICS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    with Checkpoints(trunk / run_folder.BRANCHES, None, read_only=True) as kept:
        return kept.restore(config.branch_step, abstract_state)


def check_branch(folder: Path, config: RunConfig) -> None:
    """Raises InputError unless a run can branch where its config says."""
    trunk = trunk_folder(folder, config)
    named = f"RunConfig.branch_of = {config.branch_of!r}"
    if not (trunk / run_folder.CONFIG).exists():
        raise InputError(f"{named}: {trunk} is no run; train it first, or leave branch_of empty to train alone")
    if config.lineage != load_config(trunk / run_folder.CONFIG).lineage:
        raise InputError(f"{named}: {trunk} is not the same run but for its budget; leave branch_of empty")
    if not has_branch_state(folder, config) and not trunk_diverged_before(folder, config):
        raise InputError(
            f"{named}: {trunk} keeps no state at step {config.branch_step}; train it with that step in "
            "measure.branch_at_steps, or leave branch_of empty to train alone"
        )


def trunk_diverged_before(folder: Path, config: RunConfig) -> bool:
    """Whether the trunk diverged before this run leaves it, as this run would have."""
    result = run_folder.read_result(trunk_folder(folder, config))
    if result is None or result["status"] != "diverged" or has_branch_state(folder, config):
        return False
    return result["row"]["tokens"] <= config.branch_step * config.data.batch_tokens


def write_diverged_result(folder: Path, config: RunConfig) -> None:
    """Writes the result of a run whose trunk diverged before it left: what it would have been alone."""
    trunk = run_folder.read_result(trunk_folder(folder, config)) or {}
    before = trunk["row"]
    row = run_folder.result_row(config, tokens=before["tokens"], unique_tokens=before["unique_tokens"])
    row |= {"status": "diverged", "loss": None, "loss_stderr": None, "bits_per_byte": None}
    row |= {"seconds": 0.0, "tokens_per_second": None, "flops_spent": 0.0}
    reason = f"{config.branch_of}, with which it shares these steps: {trunk['reason']}"
    run_folder.write_result(folder, status="diverged", row=row, measurements={}, reason=reason)
