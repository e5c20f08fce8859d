"""Trains several runs of one shape in one program, each with its own folder, step, batch and rates.

A member's run folder is the one that `scaling train` would write, so that either command resumes what the other began.
Members need not be at the same step: each has its own checkpoint to start from and its own budget. One that has ended,
well or by divergence, changes no more and its result is written at once; the others go on, and its folder stays locked
until the last has ended.

On accelerators the step is vmapped over members: one small model leaves a device idle, many fill it. Attention is XLA's
there: cuDNN's is wrong or refused under vmap, in releases of jax before mid-2026. On CPUs members are stepped one after
the other within the program (`lax.map`), because XLA's batched products are slow there: of the speed of members alone,
vmap had 0.5 to 0.7, one after the other 0.8 to 1.3 (11k to 217k parameters on a core, benchmarks/README.md). There each
member equals its solo run bit for bit; on accelerators to rounding, and where a solo run would use cuDNN's kernel to
that kernel's rounding. A member's `seconds` and `tokens_per_second` are of the wall clock, which all members share.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax

from scaling.config.run_config import RunConfig
from scaling.errors import InputError
from scaling.model import sharding
from scaling.record import run_folder
from scaling.training import simulated_run
from scaling.training.malloc import keep_freed_pages
from scaling.training.memory import GIB, state_bytes
from scaling.training.monitor import progress_bar, stop_signals
from scaling.training.out_of_memory import is_out_of_memory
from scaling.training.population_limits import check_same_program
from scaling.training.population_step import BatchedGroup, member_kernel
from scaling.training.session import final_status, initial_state, open_session, with_data_fingerprint
from scaling.training.train import Member, train_members
from scaling.training.train_step import Program, build_program

Outcome = run_folder.Status | Exception


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
        with _catch_refusal(outcomes, folder):
            config = with_data_fingerprint(run_folder.read_config(folder), folder)
            if simulated_run.is_simulated(config):
                outcomes[folder] = simulated_run.simulate_run(config, folder)
            elif (status := final_status(config, folder)) is not None:
                outcomes[folder] = status
            else:
                waiting[folder] = config
    if waiting:
        check_same_program([*waiting.values()])
        outcomes |= _train(waiting, quiet)
    return {folder: outcomes[folder] for folder in folders}


@contextlib.contextmanager
def _catch_refusal(outcomes: dict[Path, Outcome], folder: Path) -> Iterator[None]:
    """Makes an error of one member its outcome; an error of the device, or of too little memory, is raised."""
    try:
        yield
    except jax.errors.JaxRuntimeError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        outcomes[folder] = error


def _train(waiting: dict[Path, RunConfig], quiet: bool) -> dict[Path, Outcome]:
    """Trains the members of one program to their ends; returns the outcome of each folder."""
    first = next(iter(waiting.values()))
    mesh = sharding.make_mesh(first.mesh, jax.devices()[:1])
    program = build_program(first, mesh, member_kernel(first, mesh))
    _check_memory(program, len(waiting))
    outcomes: dict[Path, Outcome] = {}
    with (
        contextlib.ExitStack() as sessions,
        stop_signals() as stop_requested,
        progress_bar(f"{len(waiting)} runs {first.sweep}", sum(c.steps for c in waiting.values()), quiet) as show,
    ):
        members, states = [], []
        for folder, config in waiting.items():
            with _catch_refusal(outcomes, folder):
                position = {"members": len(waiting), "lane": len(members)}
                session = sessions.enter_context(open_session(config, folder, program, population=position))
                steps_done, state = initial_state(session)
                members.append(Member(session, steps_done))
                states.append(jax.device_get(state))
        if members:
            group = BatchedGroup(program)
            stacked = group.stack(states)
            states.clear()  # the host's copies
            statuses = train_members(group, members, stacked, stop_requested, show)
            outcomes |= dict(zip((member.session.folder for member in members), statuses, strict=True))
    return outcomes


def _check_memory(program: Program, members: int) -> None:
    """Raises InputError when weights and optimizer states alone are more than the device has."""
    limit = (program.mesh.local_devices[0].memory_stats() or {}).get("bytes_limit")
    per_member = state_bytes(program.abstract_state)
    if limit and members * per_member > limit:
        raise InputError(
            f"{members} members: weights and optimizer states are {members * per_member / GIB:.1f} GiB on a device of "
            f"{limit / GIB:.1f}; at most {limit // per_member} members would fit"
        )
