"""The training loop, of one run here and of the members of a population (population.py). Imports no TensorFlow."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from scaling.config.run_config import RunConfig
from scaling.data.shards import TokenShards, gather_batch
from scaling.model import sharding
from scaling.record import run_folder
from scaling.training import branching, multihost, simulated_run
from scaling.training.malloc import keep_freed_pages
from scaling.training.memory import check_memory
from scaling.training.monitor import Clock, DivergenceMonitor, Stopped, progress_bar, stop_signals
from scaling.training.prefetch import prefetch
from scaling.training.schedule import Rates, step_rates
from scaling.training.session import (
    Session,
    crosses,
    final_measurements,
    final_status,
    initial_state,
    open_session,
    record_result,
    record_step,
    record_validation_loss,
    with_data_fingerprint,
)
from scaling.training.train_step import Metrics, Program, TrainState, build_program


def train(config: RunConfig, folder: Path, *, quiet: bool = False) -> run_folder.Status:
    """Trains one run in its folder, from its last checkpoint if there is one; returns at once when it has ended.

    Raises InputError on bad input, before anything is spent, and Stopped after a signal, the state saved. Where
    several processes train the run and one is lost, this one ends (multihost.exit_together).
    """
    if simulated_run.is_simulated(config):
        return simulated_run.simulate_run(with_data_fingerprint(config, folder), folder)
    keep_freed_pages()
    multihost.join_processes()
    with multihost.exit_together():
        return _train(with_data_fingerprint(config, folder), folder, quiet)


def _train(config: RunConfig, folder: Path, quiet: bool) -> run_folder.Status:
    if (status := final_status(config, folder)) is not None:
        return status
    program = build_program(config, sharding.make_mesh(config.mesh))
    if limit := (program.mesh.local_devices[0].memory_stats() or {}).get("bytes_limit"):
        check_memory(program.abstract_state, limit)
    with (
        open_session(config, folder, program) as session,
        stop_signals() as stop_requested,
        progress_bar(config.name or config.run_id, config.steps, quiet) as show_progress,
        # Inside the others too: they wait for checkpoints, which a lost process would never finish.
        multihost.exit_together(),
    ):
        steps_done, state = initial_state(session)
        members = [Member(session, steps_done)]
        (status,) = train_members(SoloGroup(program), members, state, stop_requested, show_progress)
        multihost.wait_for_all("the result is written")
        return status


@dataclass(frozen=True)
class StepInput:
    """The input of a step, on the devices already. tokens_BS: [B, T + 1], each row read by the process that holds it;
    rates: float32 scalars on every device. Of a population both have a leading axis E of members."""

    tokens_BS: jax.Array
    rates: Rates


def read_batch(config: RunConfig, tokens: TokenShards, step: int, part: slice | None = None) -> np.ndarray:
    """Rows `part` of the batch of a step, [rows, T + 1]; all by default."""
    B, T, V = config.data.batch_sequences, config.data.sequence_length, config.model.vocab_size
    order = config.data_order
    return gather_batch(tokens, seed=order, step=step, batch_sequences=B, sequence_length=T, rows=part, vocab_size=V)


def step_input(config: RunConfig, tokens: TokenShards, mesh: Mesh, step: int) -> StepInput:
    """The input of step `step` (from 0) of a run: a pure function of (seed, step)."""
    B, T = config.data.batch_sequences, config.data.sequence_length
    replicated = NamedSharding(mesh, PartitionSpec())
    rates = jax.tree.map(
        lambda rate: jax.make_array_from_callback((), replicated, lambda _: rate), step_rates(step, config)
    )
    return StepInput(sharding.put_batch(functools.partial(read_batch, config, tokens, step), (B, T + 1), mesh), rates)


@dataclass
class Member:
    """One run while it trains, alone or in a population.

    steps_done: optimizer steps dispatched, those of earlier sessions included. pending: a step whose metrics are still
    on the devices, as (step, row of this member among those stepped together, metrics of them all). measurements: of
    the state after the last step. status: None while it trains.
    """

    session: Session
    steps_done: int
    pending: tuple[int, int, Metrics] | None = None
    loss: float = math.nan
    measurements: dict[str, run_folder.Value] = field(default_factory=dict)
    status: run_folder.Status | None = None
    clock: Clock = field(init=False)
    divergence: DivergenceMonitor = field(init=False)

    def __post_init__(self) -> None:
        config = self.session.config
        self.clock, self.divergence = Clock(config), DivergenceMonitor(math.log(config.model.vocab_size))

    @property
    def steps_left(self) -> int:
        return self.session.config.steps - self.steps_done

    def record_pending(self) -> str:
        """Fetches and records the metrics of the pending step; returns why the run diverged in it, or ""."""
        if self.pending is None:
            return ""
        step, row, metrics = self.pending
        self.pending = None
        member_metrics = {name: float(np.atleast_1d(value)[row]) for name, value in jax.device_get(metrics).items()}
        self.loss = member_metrics["loss"]
        return record_step(self.session, step, member_metrics, self.clock, self.divergence)

    def measure_last_state(self, state: TrainState) -> str:
        """Measures the state after the last step and starts to save it; returns why the run diverged in that step, or
        "". A state that has diverged is not saved."""
        self.measurements, reason = final_measurements(self.session, state)
        if not reason:
            self.session.checkpoints.save(self.steps_done, state)
        return reason

    def end(self, status: run_folder.Status, reason: str = "") -> None:
        """Writes the result, once all checkpoints are whole."""
        self.session.checkpoints.wait()
        measurements = self.measurements if status == "done" else {}
        record_result(self.session, status, self.steps_done, self.clock, measurements, reason)
        self.status = status


class MemberGroup(Protocol):
    """How the members of a loop take a step together: `SoloGroup`, or `BatchedGroup` of population_step.py.

    State and metrics are those of all members; a member's row is its place among them.
    """

    @property
    def program(self) -> Program: ...

    def make_input(self, members: Sequence[Member], starts: Sequence[int], offset: int) -> StepInput:
        """The input of every member's step `starts[row] + offset`. Called ahead, in another thread."""
        ...

    def step(self, state: TrainState, batch: StepInput, members: Sequence[Member]) -> tuple[TrainState, Metrics]:
        """Dispatches one step of every member that still trains. Consumes `state`."""
        ...

    def member_state(self, state: TrainState, row: int) -> TrainState:
        """The state of one member, laid out as that of a run alone."""
        ...

    def needs_regrouping(self, members: Sequence[Member]) -> bool:
        """Whether the members that still train, if any, are better stepped without those that have ended."""
        ...

    def drop_ended(self, members: Sequence[Member], state: TrainState) -> tuple[Sequence[Member], TrainState]:
        """The members to step from here on, and their state."""
        ...


@dataclass(frozen=True)
class SoloGroup:
    """One run over any mesh of devices; its state has no axis of members."""

    program: Program

    def make_input(self, members: Sequence[Member], starts: Sequence[int], offset: int) -> StepInput:
        s = members[0].session
        return step_input(s.config, s.tokens, self.program.mesh, starts[0] + offset)

    def step(self, state: TrainState, batch: StepInput, members: Sequence[Member]) -> tuple[TrainState, Metrics]:
        return self.program.step(state, batch.tokens_BS, batch.rates)

    def member_state(self, state: TrainState, row: int) -> TrainState:
        return state

    def needs_regrouping(self, members: Sequence[Member]) -> bool:
        return members[0].status is not None

    def drop_ended(self, members: Sequence[Member], state: TrainState) -> tuple[Sequence[Member], TrainState]:
        return members, state


def train_members(
    group: MemberGroup,
    members: Sequence[Member],
    state: TrainState,
    stop_requested: Callable[[], bool],
    show_progress: Callable[[int, float, float], None],
) -> list[run_folder.Status]:
    """Trains every member to its end and returns their statuses. state: of all members, each after its `steps_done`.

    Raises Stopped after a signal, every state saved.
    """
    for row, member in enumerate(members):
        # The process ended after the last checkpoint of such a run and before its result.
        if member.steps_left == 0:
            reason = member.measure_last_state(group.member_state(state, row))
            member.end("diverged" if reason else "done", reason)
    active_members = members
    while any(member.status is None for member in active_members):
        active_members, state = group.drop_ended(active_members, state)
        state = _run_steps(group, active_members, state, stop_requested, show_progress)
    return [member.status for member in members if member.status is not None]


def _run_steps(
    group: MemberGroup,
    members: Sequence[Member],
    state: TrainState,
    stop_requested: Callable[[], bool],
    show_progress: Callable[[int, float, float], None],
) -> TrainState:
    """Steps these members until the group needs regrouping. The metrics of a step are fetched after the next one is
    dispatched, so that the devices never wait for Python."""
    start_vote = multihost.make_vote(stop_requested, group.program.mesh)
    make_input = functools.partial(group.make_input, members, [member.steps_done for member in members])
    with prefetch(make_input, range(max(member.steps_left for member in members))) as batches:
        for batch in batches:
            training = [row for row, member in enumerate(members) if member.status is None]
            pending_vote = start_vote()
            state, metrics = group.step(state, batch, members)
            stopping = pending_vote()
            finished = [row for row in training if _after_step(group, members, row, state, metrics, stopping)]
            # Written after all members' last checkpoints have been started, since each result waits for its own.
            for row in finished:
                members[row].end("done")
            _report(members, show_progress)
            if stopping and any(member.status is None for member in members):
                for member in members:
                    member.session.checkpoints.wait()
                raise Stopped(_stop_message(members))
            if group.needs_regrouping(members):
                break
    return state


def _after_step(
    group: MemberGroup, members: Sequence[Member], row: int, state: TrainState, metrics: Metrics, stopping: bool
) -> bool:
    """Logs, evaluates and checkpoints one member as scheduled, and ends it if it diverged. Returns whether it has
    finished: the step was its last, and it is measured and being saved."""
    member, s, step = members[row], members[row].session, members[row].steps_done
    c = s.config
    reason = member.record_pending()  # of the step before this one
    member.steps_done, member.pending = step + 1, (step, row, metrics)
    finishing = member.steps_left == 0 and not stopping  # a stopped run is measured by the session that resumes it
    must_save = stopping or crosses(s, step, c.checkpoint_tokens)
    must_measure = crosses(s, step, c.measure.every_tokens)
    if not reason and (finishing or must_save or must_measure or member.steps_done in c.measure.branch_at_steps):
        reason = member.record_pending()  # of this step: nothing is written of a state that has diverged
        if not reason:
            own_state = group.member_state(state, row)
            with _paused(members):
                branching.save_branch_state(s.folder, c, member.steps_done, own_state)
                if must_measure:
                    record_validation_loss(s, step, own_state)
                if finishing:
                    reason = member.measure_last_state(own_state)
            if must_save and not finishing:
                s.checkpoints.save(member.steps_done, own_state)
    if reason:
        member.end("diverged", reason)
    return finishing and not reason


@contextlib.contextmanager
def _paused(members: Sequence[Member]) -> Iterator[None]:
    """Stops the clocks of all members, which share one device: time inside is no member's training."""
    with contextlib.ExitStack() as stack:
        for member in members:
            stack.enter_context(member.clock.paused())
        yield


def _report(members: Sequence[Member], show_progress: Callable[[int, float, float], None]) -> None:
    """Shows the steps of all members, and the mean loss and summed rate of those that train."""
    reported = [member for member in members if member.status is None] or members
    rate = sum(member.clock.tokens_per_second for member in reported)
    loss = sum(member.loss for member in reported) / len(reported)
    show_progress(sum(member.steps_done for member in members), loss, rate)


def _stop_message(members: Sequence[Member]) -> str:
    left = [member for member in members if member.status is None]
    where = f"at step {left[0].steps_done} of {left[0].session.config.steps}"
    return f"stopped {where if len(left) == 1 else f'with {len(left)} runs to go'}; the same command goes on from there"
