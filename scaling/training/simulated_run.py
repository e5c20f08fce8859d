"""A source that trains nothing: a run's loss is a law with known parameters, plus what disturbs real ones.

`--data.corpus 'simulated?alpha=.3&noise=.01'` goes through the same plan, run folders, table and fit as text does, in
milliseconds a run: for tests, for planning, for teaching. With N = params_matmul and D = tokens,

    L = (E + A N^-alpha + B N^gamma D^-beta) (1 + curvature log2(rate / best)^2) exp(noise z + seed_effect z_seed)

where best = rate_at (N / 1e4)^-rate_exponent is the best learning rate and z, z_seed are standard normal numbers of
the run and of its seed; half the variance of z is that of its trunk, the runs that differ in their budget alone. A
run diverges above `limit` times the best rate, and with chance `mishap` anyway. The law is Hoffmann et al. 2022,
equation 2, with an interaction (ours); the dependence on the rate is ours.

Not in the design's list of modules: a source of its own. Imports no JAX before it trains.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import platform
import typing
from pathlib import Path

import numpy as np

from scaling import files
from scaling.accounting.counts import count_params
from scaling.config.run_config import RunConfig
from scaling.data.simulated_corpus import KIND, Simulated
from scaling.record import run_folder

MAX_LOGGED_STEPS = 60
"""Logged steps of a run, at most."""
UNDECAYED_EXCESS = 0.06
"""How much higher the loss stands before the learning rate has decayed, relatively."""
STEP_NOISE = 0.01
"""Relative noise of a logged batch's loss."""
TOKEN_LOSS_STD = 1.0
"""Standard deviation of a token's nats, for the standard error of a validation set."""


def is_simulated(config: RunConfig) -> bool:
    """Whether a run is to be simulated."""
    return config.data.corpus.partition("?")[0] == KIND


def true_law(config: RunConfig) -> Simulated:
    """The truth behind a simulated run. Raises InputError on an unknown field or a wrong value."""
    return _parse_law(config.data.corpus)


@functools.cache
def _parse_law(corpus: str) -> Simulated:
    from scaling.data.corpora import parse_corpus

    found = parse_corpus(corpus)
    assert isinstance(found, Simulated)
    return found


def simulate_run(config: RunConfig, folder: Path) -> run_folder.Status:
    """Writes the run folder that training would have: config, environment, metrics, result. Does not wait for the disk:
    what a loss of power tears is made again."""
    truth = true_law(config)
    if (ended := run_folder.read_result(folder)) is not None and ended["status"] != "failed":
        return ended["status"]
    if not run_folder.holds_config(folder, config):
        run_folder.check_folder(folder, config)
        run_folder.write_config(folder, config, durable=False)
    files.write_json(folder / run_folder.ENVIRONMENT, _environment(truth), durable=False)
    count, rate = count_params(config.model).matmul, config.optimizer.learning_rate
    mine = _generator(truth, config.run_id)
    trunk = config.lineage if config.branch_step else config.run_id
    keys = (f"trunk {trunk}", f"seed {config.seed}")
    shared, seed = (_generator(truth, key).standard_normal() for key in keys)
    z = math.sqrt(0.5) * (mine.standard_normal() + shared)
    factor = math.exp(truth.noise * z + truth.seed_effect * seed)
    diverged = rate > truth.limit * truth.best_rate(count) or mine.random() < truth.mishap
    done = max(config.steps // 3, 1) if diverged else config.steps
    _write_metrics(folder, config, truth, done, factor, mine)
    for step in (step for step in config.measure.branch_at_steps if step <= done):
        (folder / run_folder.BRANCHES / str(step)).mkdir(parents=True, exist_ok=True)
    tokens = done * config.data.batch_tokens
    row = run_folder.result_row(
        config, tokens=tokens, unique_tokens=truth.unique_tokens(tokens, config.data.sequence_length)
    )
    nats = math.nan if diverged else factor * truth.loss(count, tokens, rate)
    size = config.measure.validation_tokens
    stderr = math.nan if diverged else TOKEN_LOSS_STD / math.sqrt(size)
    found: dict[str, run_folder.Value] = {} if diverged else {"loss/nats": run_folder.Value(nats, size, stderr)}
    status: run_folder.Status = "diverged" if diverged else "done"
    row |= {"status": status, "loss": nats, "loss_stderr": stderr, "bits_per_byte": nats / math.log(2)}
    row |= {"seconds": 0.0, "tokens_per_second": None}
    reason = f"simulated: loss is nan at step {done}" if diverged else ""
    run_folder.write_result(folder, status=status, row=row, measurements=found, reason=reason, durable=False)
    return status


def _write_metrics(
    folder: Path, config: RunConfig, truth: Simulated, done: int, factor: float, mine: np.random.Generator
) -> None:
    """A training curve: the law at the tokens seen, higher while the learning rate has not decayed, with noise."""
    from scaling.training.optimizer import step_learning_rate

    count, peak = count_params(config.model).matmul, config.optimizer.learning_rate
    lines = []
    for step in np.unique(np.linspace(1, done, MAX_LOGGED_STEPS).astype(int)).tolist():
        tokens, rate = step * config.data.batch_tokens, step_learning_rate(step - 1, config)
        smooth = factor * truth.loss(count, tokens, peak) * (1 + UNDECAYED_EXCESS * rate / peak)
        loss = smooth * math.exp(STEP_NOISE * mine.standard_normal())
        line = {"step": step, "tokens": tokens, "loss": loss, "grad_norm": 1.0, "learning_rate": rate}
        lines.append(json.dumps(line) + "\n")
    (folder / run_folder.METRICS).write_text("".join(lines))


def _environment(truth: Simulated) -> dict[str, typing.Any]:
    """What made the numbers: no device, no kernel."""
    return {"schema": run_folder.SCHEMA, "python": platform.python_version(), "simulated": truth.name}


def _generator(truth: Simulated, key: str) -> np.random.Generator:
    seed = int.from_bytes(hashlib.sha256(f"{truth.name} {key}".encode()).digest()[:8])
    return np.random.Generator(np.random.PCG64(seed))
