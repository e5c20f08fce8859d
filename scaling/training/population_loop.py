"""Members of a population, stepped together until each has ended.

A lane is a member while it trains: its own steps, batches, rates, clock and watch. One that has ended keeps its state
while the others go on; its result is written at once, its folder stays locked until the last has ended.

Not in the design's list of modules: population.py opens run folders, this steps them.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from scaling.record import run_folder
from scaling.training import branching
from scaling.training.monitor import Clock, DivergenceMonitor, Stopped
from scaling.training.optimizer import Rates, step_rates
from scaling.training.prefetch import prefetch
from scaling.training.session import (
    Session,
    crosses,
    final_measurements,
    record_result,
    record_step,
    record_validation_loss,
)
from scaling.training.train import read_batch
from scaling.training.train_step import Program, TrainState

Outcome = run_folder.Status | Exception
BatchedStep = Callable[[TrainState, jax.Array, Rates, jax.Array], tuple[TrainState, dict[str, jax.Array]]]


def sequential_on_device(mesh: Mesh) -> bool:
    """Whether members are stepped one after the other within the program, not side by side."""
    return mesh.devices.flat[0].platform == "cpu"


def batched_step(program: Program) -> BatchedStep:
    """The compiled step of all members: states [E, ...], tokens [E, B, T + 1], rates [E] and a mask [E] of those that
    still train -> states, metrics [E]. What the mask leaves out keeps its state; its metrics mean nothing."""

    update = jax.jit(program.update)  # traced once, however often it is named below

    def turn(member: tuple[TrainState, jax.Array, Rates, jax.Array]) -> tuple[TrainState, dict[str, jax.Array]]:
        state, tokens_BS, rates, live = member
        _, metrics = jax.eval_shape(update, state, tokens_BS, rates)
        frozen = state, {name: jnp.zeros(like.shape, like.dtype) for name, like in metrics.items()}
        return jax.lax.cond(live, lambda: update(state, tokens_BS, rates), lambda: frozen)

    def step(
        state: TrainState, tokens_EBS: jax.Array, rates: Rates, live_E: jax.Array
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        if sequential_on_device(program.mesh):
            return jax.lax.map(turn, (state, tokens_EBS, rates, live_E))
        stepped, metrics = jax.vmap(update)(state, tokens_EBS, rates)
        kept = jax.tree.map(lambda new, old: jax.vmap(jnp.where)(live_E, new, old), stepped, state)
        return kept, metrics

    everywhere = NamedSharding(program.mesh, P())
    return jax.jit(step, donate_argnums=0, out_shardings=everywhere)


@dataclass
class Member:
    """A member while it trains. taken: steps so far. pending: a step whose metrics are still on the device, and its row
    among the members stepped together. found: what was measured after the last step."""

    session: Session
    taken: int
    ended: bool = False
    pending: tuple[int, int, dict[str, jax.Array]] | None = None
    loss: float = math.nan
    found: dict[str, run_folder.Value] = field(default_factory=dict)
    clock: Clock = field(init=False)
    watch: DivergenceMonitor = field(init=False)

    def __post_init__(self) -> None:
        config = self.session.config
        self.clock, self.watch = Clock(config), DivergenceMonitor(math.log(config.model.vocab_size))

    @property
    def left(self) -> int:
        return self.session.config.steps - self.taken

    def note(self) -> str:
        """Fetches and records the pending metrics; returns why the run diverged, or nothing."""
        if self.pending is None:
            return ""
        step, row, metrics = self.pending
        self.pending = None
        own = {name: np.asarray(value)[row] for name, value in metrics.items()}
        self.loss = float(own["loss"])
        return record_step(self.session, step, own, self.clock, self.watch)

    def end(self, status: run_folder.Status, outcomes: dict[Path, Outcome], reason: str = "") -> None:
        """Writes the result; what was saved is whole before that."""
        self.session.checkpoints.wait()
        record_result(self.session, status, self.taken, self.clock, self.found if status == "done" else {}, reason)
        self.ended, outcomes[self.session.folder] = True, status


@dataclass(frozen=True)
class MemberGroup:
    """What members share."""

    program: Program
    step: BatchedStep
    outcomes: dict[Path, Outcome]
    stop: Callable[[], bool]
    show: Callable[[int, float, float], None]

    @property
    def everywhere(self) -> NamedSharding:
        return NamedSharding(self.program.mesh, P())

    @functools.cached_property
    def pick(self) -> Callable[[TrainState, Any], TrainState]:
        """A copy of the state in one row, laid out as that of a run alone."""
        layout = jax.tree.map(lambda leaf: leaf.sharding, self.program.abstract_state)
        return jax.jit(lambda state, row: jax.tree.map(lambda x: x[row], state), out_shardings=layout)


def train_members(g: MemberGroup, lanes: list[Member], state: TrainState) -> None:
    """Steps until every member has ended. Raises Stopped when a signal came, all saved."""
    for row, lane in enumerate(lanes):
        if lane.left == 0:
            reason = _conclude(lane, g.pick(state, row))
            lane.end("diverged" if reason else "done", g.outcomes, reason)
    while live := [row for row, lane in enumerate(lanes) if not lane.ended]:
        if len(live) < len(lanes) and not sequential_on_device(g.program.mesh):
            lanes, kept = [lanes[row] for row in live], np.array(live)
            state = jax.jit(lambda state, kept=kept: jax.tree.map(lambda x: x[kept], state))(state)
        state = _run_steps(g, lanes, state)


def _run_steps(g: MemberGroup, lanes: list[Member], state: TrainState) -> TrainState:
    """Steps these members until all have ended; where they go side by side, until half have, for those that have ended
    take as long as the others there. The metrics of a step are fetched after the next is dispatched."""
    enough = 0 if sequential_on_device(g.program.mesh) else len(lanes) // 2
    make = functools.partial(_group_input, lanes, [lane.taken for lane in lanes], g.everywhere)
    with prefetch(make, range(max(lane.left for lane in lanes))) as feeds:
        for tokens_EBS, rates in feeds:
            live = [(row, lane) for row, lane in enumerate(lanes) if not lane.ended]
            if len(live) <= enough:
                break
            live_E = jax.device_put(np.array([not lane.ended for lane in lanes]), g.everywhere)
            state, metrics = g.step(state, tokens_EBS, rates, live_E)
            stopping = g.stop()
            done = [lane for row, lane in live if _record_member(g, lanes, lane, row, state, metrics, stopping)]
            for lane in done:
                lane.end("done", g.outcomes)
            _report(g, lanes)
            if stopping and (left := sum(not lane.ended for lane in lanes)):
                for lane in lanes:
                    lane.session.checkpoints.wait()
                raise Stopped(f"stopped with {left} runs to go; the same command goes on from there")
    return state


def _group_input(
    lanes: Sequence[Member], starts: Sequence[int], where: NamedSharding, tick: int
) -> tuple[jax.Array, Rates]:
    """The input of one step of all members: tokens [E, B, T + 1] and rates [E]. Of one that has ended, anything."""
    made: dict[tuple[int, int, int | None], np.ndarray] = {}
    batches, rates = [], []
    for lane, start in zip(lanes, starts, strict=True):
        c, step = lane.session.config, start + tick
        same = (c.data_order, step, c.data.unique_tokens)
        if lane.ended or step >= c.steps:
            batches.append(np.zeros((c.data.batch_sequences, c.data.sequence_length + 1), np.int32))
        else:
            if same not in made:
                made[same] = read_batch(c, lane.session.tokens, step)
            batches.append(made[same])
        rates.append(step_rates(step, c))
    return jax.device_put((np.stack(batches), jax.tree.map(lambda *one: np.stack(one), *rates)), where)


def _record_member(
    g: MemberGroup,
    lanes: Sequence[Member],
    lane: Member,
    row: int,
    state: TrainState,
    metrics: dict[str, jax.Array],
    stopping: bool,
) -> bool:
    """What is recorded, measured and saved of one member after a step; whether it was its last, in which it did not
    diverge."""
    s, c, step = lane.session, lane.session.config, lane.taken
    reason, lane.taken, last = lane.note(), step + 1, lane.left == 1
    lane.pending = (step, row, metrics)
    saving, measuring = stopping or crosses(s, step, c.checkpoint_tokens), crosses(s, step, c.measure.every_tokens)
    if not reason and (last or saving or measuring or lane.taken in c.measure.branch_at_steps):
        reason = lane.note()
        if not reason:
            with _paused(lanes):
                own = g.pick(state, row)
                branching.save_branch_state(s.folder, c, lane.taken, own)
                if measuring:
                    record_validation_loss(s, step, own)
                reason = _conclude(lane, own) if last else ""
            if saving and not last:
                s.checkpoints.save(lane.taken, own)
    if reason:
        lane.end("diverged", g.outcomes, reason)
    return last and not reason


def _conclude(lane: Member, own: TrainState) -> str:
    """Measures the last state of a member and begins to save it; returns why the run diverged in the last step."""
    lane.found, reason = final_measurements(lane.session, own)
    if not reason:
        lane.session.checkpoints.save(lane.taken, own)
    return reason


@contextlib.contextmanager
def _paused(lanes: Sequence[Member]) -> Iterator[None]:
    """Time inside is no member's."""
    with contextlib.ExitStack() as stack:
        for lane in lanes:
            stack.enter_context(lane.clock.paused())
        yield


def _report(g: MemberGroup, lanes: Sequence[Member]) -> None:
    live = [lane for lane in lanes if not lane.ended] or lanes
    rate = sum(lane.clock.tokens_per_second for lane in live)
    g.show(sum(lane.taken for lane in lanes), sum(lane.loss for lane in live) / len(live), rate)
