"""The step that all members of a population take in one program, and its input. Used by population.py."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from scaling.config.run_config import RunConfig
from scaling.model.attention import Kernel
from scaling.training.schedule import Rates, step_rates
from scaling.training.train import Member, StepInput, read_batch
from scaling.training.train_step import Metrics, Program, TrainState

BatchedStep = Callable[[TrainState, jax.Array, Rates, jax.Array], tuple[TrainState, Metrics]]


def sequential_on_device(mesh: Mesh) -> bool:
    """Whether the program steps members one after the other, as on CPUs, and not vmapped."""
    return mesh.devices.flat[0].platform == "cpu"


def member_kernel(config: RunConfig, mesh: Mesh) -> Kernel | None:
    """The attention kernel of a population where it is not the one that a run alone would use: XLA's under vmap."""
    return "xla" if config.model.attention == "auto" and not sequential_on_device(mesh) else None


def batched_step(program: Program) -> BatchedStep:
    """The compiled step of all members: states [E, ...], tokens [E, B, T + 1], rates [E] and a mask [E] of those that
    still train -> states, metrics [E].

    A member that the mask leaves out keeps its state; its metrics mean nothing. The states passed in are consumed.
    """
    update = jax.jit(program.update)  # traced once, although it is named twice below

    def step_member(member: tuple[TrainState, jax.Array, Rates, jax.Array]) -> tuple[TrainState, Metrics]:
        state, tokens_BS, rates, is_live = member
        _, metrics = jax.eval_shape(update, state, tokens_BS, rates)
        unchanged = state, {name: jnp.zeros(like.shape, like.dtype) for name, like in metrics.items()}
        return jax.lax.cond(is_live, lambda: update(state, tokens_BS, rates), lambda: unchanged)

    def step(state: TrainState, tokens_EBS: jax.Array, rates: Rates, live_E: jax.Array) -> tuple[TrainState, Metrics]:
        if sequential_on_device(program.mesh):
            return jax.lax.map(step_member, (state, tokens_EBS, rates, live_E))
        stepped, metrics = jax.vmap(update)(state, tokens_EBS, rates)
        # vmap of where: live_E selects along the member axis of leaves of any rank.
        selected = jax.tree.map(lambda new, old: jax.vmap(jnp.where)(live_E, new, old), stepped, state)
        return selected, metrics

    return jax.jit(step, donate_argnums=0, out_shardings=NamedSharding(program.mesh, P()))


@dataclass(frozen=True)
class BatchedGroup:
    """Members whose states are stacked along a leading axis E, on one device (scaling.training.train.MemberGroup)."""

    program: Program

    @property
    def replicated(self) -> NamedSharding:
        return NamedSharding(self.program.mesh, P())

    @functools.cached_property
    def _step(self) -> BatchedStep:
        return batched_step(self.program)

    @functools.cached_property
    def _select_member(self) -> Callable[[TrainState, Any], TrainState]:
        layout = jax.tree.map(lambda leaf: leaf.sharding, self.program.abstract_state)
        return jax.jit(lambda state, row: jax.tree.map(lambda x: x[row], state), out_shardings=layout)

    def stack(self, states: Sequence[TrainState]) -> TrainState:
        """States of members, on the host, as one with a leading axis of members, on the device."""
        return jax.device_put(jax.tree.map(lambda *leaves: np.stack(leaves), *states), self.replicated)

    def make_input(self, members: Sequence[Member], starts: Sequence[int], offset: int) -> StepInput:
        """Tokens [E, B, T + 1] and rates [E] of every member's step `starts[row] + offset`; zero tokens for a member
        that has ended. Members that share data order, step and corpus part share one read."""
        batches: dict[tuple[int, int, int | None], np.ndarray] = {}
        rows, rates = [], []
        for member, start in zip(members, starts, strict=True):
            c, step = member.session.config, start + offset
            key = (c.data_order, step, c.data.unique_tokens)
            if member.status is not None or step >= c.steps:
                rows.append(np.zeros((c.data.batch_sequences, c.data.sequence_length + 1), np.int32))
            else:
                if key not in batches:
                    batches[key] = read_batch(c, member.session.tokens, step)
                rows.append(batches[key])
            rates.append(step_rates(step, c))
        stacked = np.stack(rows), jax.tree.map(lambda *scalars: np.stack(scalars), *rates)
        return StepInput(*jax.device_put(stacked, self.replicated))

    def step(self, state: TrainState, batch: StepInput, members: Sequence[Member]) -> tuple[TrainState, Metrics]:
        live_E = jax.device_put(np.array([member.status is None for member in members]), self.replicated)
        return self._step(state, batch.tokens_BS, batch.rates, live_E)

    def member_state(self, state: TrainState, row: int) -> TrainState:
        """A copy of the state of one member, laid out as that of a run alone."""
        return self._select_member(state, row)

    def needs_regrouping(self, members: Sequence[Member]) -> bool:
        """Vmapped members that have ended take as long as those that train: they are dropped when they are half, which
        compiles the step anew. Members stepped one after the other cost nothing once they have ended."""
        live = sum(member.status is None for member in members)
        return live <= (0 if sequential_on_device(self.program.mesh) else len(members) // 2)

    def drop_ended(self, members: Sequence[Member], state: TrainState) -> tuple[Sequence[Member], TrainState]:
        live = [row for row, member in enumerate(members) if member.status is None]
        if len(live) == len(members) or sequential_on_device(self.program.mesh):
            return members, state
        rows_E = np.array(live)
        return [members[row] for row in live], jax.jit(lambda state: jax.tree.map(lambda x: x[rows_E], state))(state)
