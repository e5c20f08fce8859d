"""Several runs of one shape in one program, each with its own folder, step, batch and rates.

A member's run folder is the one that `scaling train` would write, so that either goes on with what the other began.
Members need not be in step: each has its own checkpoint to start from and its own budget. One that has ended, well or
by divergence, changes no more; the others go on.

On accelerators the step is vmapped over members: one small model leaves a device idle, many fill it. Attention is XLA's
there: cuDNN's is wrong or refused under vmap, in releases of jax before mid-2026. On CPUs members take turns within the
program (`lax.map`), because XLA's batched products are slow there: of the speed of members alone, vmap had 0.5 to 0.7,
turns 0.8 to 1.3 (11k to 217k parameters on a core, benchmarks/README.md). There each member equals its solo run bit for
bit; on accelerators to rounding, and where a solo run would use cuDNN's kernel to that kernel's rounding. A member's
`seconds` and `tokens_per_second` are of the wall clock, which all members share.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from scaling.config.run_config import RunConfig, load_config
from scaling.errors import InputError
from scaling.measurements import validation_loss
from scaling.model import sharding
from scaling.model.attention import Kernel
from scaling.record import run_folder
from scaling.training import simulated_run
from scaling.training.checkpoints import Checkpoints
from scaling.training.malloc import keep_freed_pages
from scaling.training.memory import GIB, state_bytes
from scaling.training.monitor import progress_bar, stop_signals
from scaling.training.out_of_memory import is_out_of_memory
from scaling.training.population_limits import check_same_program
from scaling.training.population_loop import (
    Member,
    MemberGroup,
    Outcome,
    batched_step,
    sequential_on_device,
    train_members,
)
from scaling.training.session import Session, final_status, initial_state, open_data, with_data_fingerprint
from scaling.training.train_step import Program, build_program


def train_population(folders: Sequence[Path], *, quiet: bool = False) -> dict[Path, Outcome]:
    """Trains the runs whose configs the folders hold, each from its last checkpoint if there is one.

    Returns each folder's status, or why its run alone could not begin. Raises InputError when runs cannot share a
    program or the device cannot hold them, Stopped after SIGTERM or ctrl-C, all states saved, and whatever goes wrong
    once they train: the same command goes on from the checkpoints.
    """
    keep_freed_pages()
    outcomes: dict[Path, Outcome] = {}
    waiting: dict[Path, RunConfig] = {}
    for folder in folders:
        with _refusal(outcomes, folder):
            config = with_data_fingerprint(load_config(folder / run_folder.CONFIG), folder)
            if simulated_run.is_simulated(config):
                outcomes[folder] = simulated_run.simulate_run(config, folder)
            elif (status := final_status(config, folder)) is not None:
                outcomes[folder] = status
            else:
                waiting[folder] = config
    if waiting:
        check_same_program([*waiting.values()])
        _train(waiting, outcomes, quiet)
    return {folder: outcomes[folder] for folder in folders}


@contextlib.contextmanager
def _refusal(outcomes: dict[Path, Outcome], folder: Path) -> Iterator[None]:
    """What is wrong with one member becomes its outcome; what is wrong with the device, or its memory, is raised."""
    try:
        yield
    except jax.errors.JaxRuntimeError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        outcomes[folder] = error


def _train(waiting: dict[Path, RunConfig], outcomes: dict[Path, Outcome], quiet: bool) -> None:
    """All members from here on: sessions opened, states stacked, stepped until the last has ended."""
    first = next(iter(waiting.values()))
    mesh = sharding.make_mesh(first.mesh, jax.devices()[:1])
    program = build_program(first, mesh, member_kernel(first, mesh))
    _check_memory(program, len(waiting))
    total = sum(config.steps for config in waiting.values())
    with (
        contextlib.ExitStack() as open_sessions,
        stop_signals() as stop,
        progress_bar(f"{len(waiting)} runs {first.sweep}", total, quiet) as show,
    ):
        lanes, states = [], []
        for folder, config in waiting.items():
            with _refusal(outcomes, folder):
                about = {"members": len(waiting), "lane": len(lanes)}
                s = open_sessions.enter_context(_session(config, folder, program, stop, about))
                start, state = initial_state(s)
                lanes.append(Member(s, start))
                states.append(jax.device_get(state))
        if lanes:
            g = MemberGroup(program, batched_step(program), outcomes, stop, show)
            state = jax.device_put(jax.tree.map(lambda *one: np.stack(one), *states), g.everywhere)
            states.clear()
            train_members(g, lanes, state)


def member_kernel(config: RunConfig, mesh: Mesh) -> Kernel | None:
    """The attention kernel of a population where it is not the one that a run alone would use: XLA's under vmap."""
    return "xla" if config.model.attention == "auto" and not sequential_on_device(mesh) else None


def _check_memory(program: Program, members: int) -> None:
    """Raises InputError when weights and optimizer states alone are more than the device has."""
    limit = (program.mesh.local_devices[0].memory_stats() or {}).get("bytes_limit")
    one = state_bytes(program.abstract_state)
    if limit and members * one > limit:
        raise InputError(
            f"{members} members: weights and optimizer states are {members * one / GIB:.1f} GiB on a device of "
            f"{limit / GIB:.1f}; at most {limit // one} members would fit"
        )


@contextlib.contextmanager
def _session(
    config: RunConfig, folder: Path, program: Program, stop: Callable[[], bool], about: dict[str, int]
) -> Iterator[Session]:
    tokens, tokenizer = open_data(config)
    measurement = validation_loss.validation_loss(tokens, config.data.sequence_length, program.mesh)
    with (
        run_folder.locked_run_folder(folder, config, program.model.kernel, population=about),
        Checkpoints(folder / run_folder.CHECKPOINTS, config.measure.keep) as checkpoints,
    ):
        yield Session(config, folder, program, tokens, tokenizer, measurement, checkpoints, stop, lambda *_: None)
