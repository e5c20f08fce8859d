"""Simulated runs, which train nothing: the loss is a law with known parameters, times the noise of real runs.

`--data.corpus 'simulated?alpha=.3&noise=.01'` goes through the same plan, run folders, table and fit as text does, in
milliseconds a run: for tests, for planning, for teaching. With N = params_matmul and D = tokens,

    L = (E + A N^-alpha + B N^gamma D^-beta) (1 + curvature log2(rate / best)^2) exp(noise z + seed_effect z_seed)

where best = rate_at (N / 1e4)^-rate_exponent is the best learning rate and z, z_seed are standard normal numbers of
the run and of its seed; half the variance of z is shared by the runs of a trunk, which differ in their budget alone. A
run diverges above `limit` times the best rate, and otherwise with probability `mishap`. The law is Hoffmann et al.
2022, equation 2, with an interaction (ours); the dependence on the rate is ours. Planning a simulated run imports no
JAX.
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
"""At most so many steps of a run are logged."""
UNDECAYED_EXCESS = 0.06
"""By which factor less 1 the loss is higher at the peak learning rate than after the decay."""
STEP_NOISE = 0.01
"""Standard deviation of the log of a logged batch's loss."""
TOKEN_LOSS_STD = 1.0
"""Standard deviation of the nats of one token, from which the standard error of a validation loss follows."""


def is_simulated(config: RunConfig) -> bool:
    """Whether a run is simulated: its corpus is `simulated?...`."""
    return config.data.corpus.partition("?")[0] == KIND


def true_law(config: RunConfig) -> Simulated:
    """The law behind a simulated run, by its corpus. Raises InputError on an unknown field or a wrong value."""
    return _parse_law(config.data.corpus)


@functools.cache
def _parse_law(corpus: str) -> Simulated:
    from scaling.data.corpora import parse_corpus

    law = parse_corpus(corpus)
    assert isinstance(law, Simulated)
    return law


def simulate_run(config: RunConfig, folder: Path) -> run_folder.Status:
    """Writes the run folder that training would have written: config, environment, metrics and result. Returns at once
    when the run has ended. Does not wait for the disk: a file that a loss of power tears is simulated again."""
    law = true_law(config)
    run_folder.check_folder(folder, config)
    result = run_folder.read_result(folder)
    if result is not None and result["status"] != "failed":
        return result["status"]
    run_folder.write_config(folder, config, durable=False)
    environment = {**run_folder.describe_run(config), **_environment(law)}
    files.write_json(folder / run_folder.ENVIRONMENT, environment, durable=False)
    params, rate = count_params(config.model).matmul, config.optimizer.learning_rate
    run_generator = _generator(law, config.run_id)
    trunk = config.lineage if config.branch_step else config.run_id
    trunk_z, seed_z = (_generator(law, key).standard_normal() for key in (f"trunk {trunk}", f"seed {config.seed}"))
    z = math.sqrt(0.5) * (run_generator.standard_normal() + trunk_z)  # each half of the variance
    noise_factor = math.exp(law.noise * z + law.seed_effect * seed_z)
    has_diverged = rate > law.limit * law.best_rate(params) or run_generator.random() < law.mishap
    steps = max(config.steps // 3, 1) if has_diverged else config.steps
    _write_metrics(folder, config, law, steps, noise_factor, run_generator)
    for step in (step for step in config.measure.branch_at_steps if step <= steps):
        (folder / run_folder.BRANCHES / str(step)).mkdir(parents=True, exist_ok=True)
    tokens = steps * config.data.batch_tokens
    row = run_folder.result_row(
        config, tokens=tokens, unique_tokens=law.unique_tokens(tokens, config.data.sequence_length)
    )
    n = config.measure.validation_tokens
    nats = math.nan if has_diverged else noise_factor * law.loss(params, tokens, rate)
    stderr = math.nan if has_diverged else TOKEN_LOSS_STD / math.sqrt(n)
    measurements = {} if has_diverged else {"loss/nats": run_folder.Value(nats, n, stderr)}
    status: run_folder.Status = "diverged" if has_diverged else "done"
    row |= {"status": status, "loss": nats, "loss_stderr": stderr, "bits_per_byte": nats / math.log(2)}
    row |= {"seconds": 0.0, "tokens_per_second": None}
    reason = f"simulated: loss is nan at step {steps}" if has_diverged else ""
    run_folder.write_result(folder, status=status, row=row, measurements=measurements, reason=reason, durable=False)
    return status


def _write_metrics(
    folder: Path, config: RunConfig, law: Simulated, steps: int, noise_factor: float, generator: np.random.Generator
) -> None:
    """Writes a training curve of `steps` steps: the law at the tokens seen, higher in proportion to the learning rate,
    which decays, and with noise."""
    from scaling.training.schedule import step_learning_rate

    params, peak = count_params(config.model).matmul, config.optimizer.learning_rate
    lines = []
    for step in np.unique(np.linspace(1, steps, MAX_LOGGED_STEPS).astype(int)).tolist():
        tokens, rate = step * config.data.batch_tokens, step_learning_rate(step - 1, config)
        expected = noise_factor * law.loss(params, tokens, peak) * (1 + UNDECAYED_EXCESS * rate / peak)
        loss = expected * math.exp(STEP_NOISE * generator.standard_normal())
        line = {"step": step, "tokens": tokens, "loss": loss if math.isfinite(loss) else None}
        line |= {"grad_norm": 1.0, "learning_rate": rate}
        lines.append(json.dumps(line) + "\n")
    (folder / run_folder.METRICS).write_text("".join(lines))


def _environment(law: Simulated) -> dict[str, typing.Any]:
    """What produced the numbers: no devices and no kernel."""
    return {"schema": run_folder.SCHEMA, "python": platform.python_version(), "simulated": law.name}


def _generator(law: Simulated, key: str) -> np.random.Generator:
    """A random generator that depends on the law and a key alone, and not on the order of runs."""
    seed = int.from_bytes(hashlib.sha256(f"{law.name} {key}".encode()).digest()[:8])
    return np.random.Generator(np.random.PCG64(seed))
