"""Shared trunks: a run starts from the state of another whose stable phase it shares, and ends as if it had trained
alone, bit for bit.

Under a warmup-stable-decay schedule (Hu et al. 2024, MiniCPM, section 4; Haegele et al. 2024) runs that differ only in
their budget take the same steps until the cooldown of the shorter one: same weights, same batches, same learning rates.
The longest of them, the trunk, is trained whole and saves its state where the others branch off; each of those trains
its own cooldown only.

    <trunk>/branches/<step>/     Orbax, one a step in `measure.branch_at_steps`, whole before any later checkpoint

One thing may differ from a run alone: the count of consecutive steps above ln V (monitor.py) starts anew in a branch.
The sweep runner uses this module without JAX, which is therefore imported inside functions.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from scaling.config.run_config import RunConfig, load_config
from scaling.errors import InputError
from scaling.record import run_folder
from scaling.training.checksums import has_been_set_aside, saved_steps, set_damaged_aside


def trunk_folder(folder: Path, config: RunConfig) -> Path:
    """The run folder beside this one that a run branches from."""
    return folder.parent / config.branch_of


def branch_folder(folder: Path, config: RunConfig) -> Path:
    """The folder below the trunk's with the state that a run branches from."""
    return trunk_folder(folder, config) / run_folder.BRANCHES / str(config.branch_step)


def has_branch_state(folder: Path, config: RunConfig) -> bool:
    """Whether the trunk has saved the whole state that a run branches from."""
    return branch_folder(folder, config).is_dir()


def begun_branch_of(folder: Path) -> str | None:
    """The `branch_of` with which a run that has checkpoints began, and which says what it has spent; None where there
    is no checkpoint, or no whole config."""
    try:
        return (
            load_config(folder / run_folder.CONFIG).branch_of if saved_steps(folder / run_folder.CHECKPOINTS) else None
        )
    except InputError:
        return None


def has_whole_branch_state(folder: Path, config: RunConfig) -> bool:
    """Whether the state that a run branches from is there and as it was written. Sets a damaged one aside. Every
    process of the run must call this."""
    import jax

    from scaling.training import multihost

    if jax.process_index() == 0 and has_branch_state(folder, config):
        set_damaged_aside([branch_folder(folder, config)])
    multihost.wait_for_all("a damaged branch state is set aside")
    return has_branch_state(folder, config)


def save_branch_state(folder: Path, config: RunConfig, step: int, state: Any) -> None:
    """Saves the state after `step` steps for others to branch from, if that step is in `measure.branch_at_steps`.

    Returns when it is written: were a later checkpoint whole before it, a run killed in between would resume from that
    checkpoint and never write this state.
    """
    from scaling.training.checkpoints import Checkpoints

    if step in config.measure.branch_at_steps:
        with Checkpoints(folder / run_folder.BRANCHES, None) as branch_states:
            branch_states.save(step, state)


def restore_branch_state(folder: Path, config: RunConfig, abstract_state: Any) -> Any:
    """The state that a run branches from; copies its trunk's metrics up to that step. Call `check_branch` before."""
    import jax

    from scaling.training.checkpoints import Checkpoints

    trunk = trunk_folder(folder, config)
    if jax.process_index() == 0:
        lines = [line for line in run_folder.read_metrics(trunk) if line["step"] <= config.branch_step]
        (folder / run_folder.METRICS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    with Checkpoints(trunk / run_folder.BRANCHES, None, read_only=True) as branch_states:
        return branch_states.restore(config.branch_step, abstract_state)


def check_branch(folder: Path, config: RunConfig) -> None:
    """Raises InputError unless a run can branch where its config says, or the state there has been set aside as
    damaged: such a run trains alone."""
    trunk = trunk_folder(folder, config)
    field = f"RunConfig.branch_of = {config.branch_of!r}"
    if not (trunk / run_folder.CONFIG).exists():
        raise InputError(f"{field}: {trunk} is no run; train it first, or leave branch_of empty to train alone")
    if config.lineage != run_folder.read_config(trunk).lineage:
        raise InputError(
            f"{field}: {trunk} differs from this run in more than tokens; make the other settings the same, "
            "name another trunk, or leave branch_of empty to train alone"
        )
    was_saved = has_branch_state(folder, config) or has_been_set_aside(branch_folder(folder, config))
    if not was_saved and not trunk_diverged_before(folder, config):
        raise InputError(
            f"{field}: {trunk} keeps no state at step {config.branch_step}; train it with that step in "
            "measure.branch_at_steps, or leave branch_of empty to train alone"
        )


def trunk_diverged_before(folder: Path, config: RunConfig) -> bool:
    """Whether the trunk diverged before the step at which this run branches off, as this run alone would have."""
    result = run_folder.read_result(trunk_folder(folder, config))
    if result is None or result["status"] != "diverged" or has_branch_state(folder, config):
        return False
    tokens = result["row"].get("tokens")
    return tokens is not None and tokens <= config.branch_step * config.data.batch_tokens


def write_diverged_result(folder: Path, config: RunConfig) -> None:
    """Writes the result of a run whose trunk diverged before this one branched off: that of the run alone."""
    trunk = run_folder.read_result(trunk_folder(folder, config))
    assert trunk is not None, "call it where trunk_diverged_before is true"
    tokens, unique_tokens = trunk["row"]["tokens"], trunk["row"].get("unique_tokens")
    row = run_folder.result_row(config, tokens=tokens, unique_tokens=unique_tokens)
    row |= {"status": "diverged", "loss": None, "loss_stderr": None, "bits_per_byte": None}
    row |= {"seconds": 0.0, "tokens_per_second": None, "flops_spent": 0.0}
    reason = f"{config.branch_of}, with which it shares these steps: {trunk['reason']}"
    run_folder.write_result(folder, status="diverged", row=row, measurements={}, reason=reason)
