"""Metric functions of seqio Tasks on a model, compared with numbers computed from plain texts and sums."""

from __future__ import annotations

import functools
import importlib.util
import json
import math
import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaling.config.run_config import ModelConfig
from scaling.data.tokenizer import ByteTokenizer
from scaling.errors import InputError
from scaling.measurements.likelihood import ContextPair, score_pairs
from scaling.measurements.seqio_tasks import seqio_task
from scaling.model.decoder import Decoder, logits

pytestmark = pytest.mark.skipif(importlib.util.find_spec("seqio") is None, reason="seqio is not installed")

TOKENIZER, LENGTH, COMPLETION_TOKENS = ByteTokenizer(), 32, 16
PROMPTS = ["def ", "import os", "x = 3", "class A:", "if not ", "return"]

MODULE = """
import functools, json, pathlib
import seqio, tensorflow as tf

ROWS = json.loads(pathlib.Path(__file__).with_suffix(".json").read_text())
BYTES = seqio.Feature(seqio.ByteVocabulary(), add_eos=True, dtype=tf.int32)
KEPT = [functools.partial(seqio.preprocessors.tokenize, copy_pretokenized=False), seqio.preprocessors.append_eos]

def hollow(split, shuffle_files, seed=None):
    return tf.data.Dataset.from_tensor_slices({"inputs": ["a", "b"], "targets": ["c", ""]})

def rows(split, shuffle_files, seed=None):
    return tf.data.Dataset.from_tensor_slices({name: [row[name] for row in ROWS] for name in ("inputs", "targets")})

def exact(targets, predictions):
    hits = [target == prediction for target, prediction in zip(targets, predictions)]
    return {"exact": seqio.metrics.Scalar(sum(hits) / len(hits)), "first": seqio.metrics.Text(predictions[0])}

def likelihood(targets, scores):
    return {"nats": -float(scores.mean())}

def broken(targets, predictions):
    raise RuntimeError("no\\nluck")

def add(name, metric_fns, splits=("validation",), feature=BYTES, **more):
    seqio.TaskRegistry.add(
        name, source=seqio.FunctionDataSource(rows, splits=splits), preprocessors=KEPT, metric_fns=metric_fns,
        output_features={"inputs": feature, "targets": feature}, **more)

add("spelt", [exact, likelihood], postprocess_fn=lambda text, example, is_target: text[:5].upper())
add("silent", [])
seqio.TaskRegistry.add(
    "hollow", source=seqio.FunctionDataSource(hollow, splits=("validation",)), preprocessors=KEPT[:1],
    metric_fns=[likelihood], output_features={"inputs": BYTES, "targets": BYTES})
add("unsplit", [exact], splits=("train",))
add("broken", [broken])
add("other", [exact], feature=seqio.Feature(seqio.ByteVocabulary(extra_ids=7), add_eos=True, dtype=tf.int32))
seqio.MixtureRegistry.add("mixed", [("spelt", 1.0)])
"""


@pytest.fixture(scope="module")
def model() -> tuple[Decoder, Any]:
    decoder = Decoder(ModelConfig(vocab_size=TOKENIZER.size, width=32, depth=1, heads=2))
    params = decoder.init(jax.random.key(3), jnp.zeros((1, 2), jnp.int32))["params"]
    return decoder, jax.tree.map(lambda weights: 2 * weights, params)


def ids(text: str) -> np.ndarray:
    return np.r_[TOKENIZER.eos_id, TOKENIZER.encode(text)]


def greedy_text(model: tuple[Decoder, Any], prompt: str) -> str:
    """The greedily decoded text, as seqio decodes ids, computed without a cache: half the longest input."""
    tokens, start = np.zeros(LENGTH, np.int32), len(ids(prompt))
    tokens[:start], place = ids(prompt), start
    while place < start + COMPLETION_TOKENS and TOKENIZER.eos_id not in tokens[start:place]:
        tokens[place] = int(likeliest(*model, tokens[None])[0, place - 1])
        place += 1
    return TOKENIZER.decode(tokens[start:place]).replace("\N{REPLACEMENT CHARACTER}", "")


@functools.partial(jax.jit, static_argnames="decoder")
def likeliest(decoder: Decoder, params: Any, tokens_BT: jax.Array) -> jax.Array:
    return logits(decoder, params, tokens_BT).argmax(axis=-1)


@pytest.fixture(scope="module")
def rows(model: tuple[Decoder, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[dict[str, str]]]:
    """Six examples. The targets of the first two are what the model generates; the others are longer than that."""
    texts = [
        greedy_text(model, prompt) if row < 2 else f"line {row} is not what it generates"
        for row, prompt in enumerate(PROMPTS)
    ]
    rows = [{"inputs": prompt, "targets": text} for prompt, text in zip(PROMPTS, texts, strict=True)]
    folder = tmp_path_factory.mktemp("module")
    (folder / "spelt_tasks.py").write_text(MODULE)
    (folder / "spelt_tasks.json").write_text(json.dumps(rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield rows


def run(model: tuple[Decoder, Any], name: str, budget: int = 100) -> dict[str, tuple[float, int, float]]:
    return seqio_task(name, LENGTH).run(*model, TOKENIZER, jax.random.key(0), budget)


@pytest.mark.slow
def test_metric_functions_see_processed_texts_and_likelihoods(model, rows) -> None:
    values = run(model, "seqio:spelt@spelt_tasks")
    assert set(values) == {"exact", "nats"}
    assert values["exact"][:2] == (pytest.approx(2 / 6), 6)
    assert values["exact"][2] == pytest.approx(math.sqrt(2 / 6 * 4 / 6 / 6), rel=0.15)
    pairs = [ContextPair(ids(row["inputs"]), [*TOKENIZER.encode(row["targets"]), TOKENIZER.eos_id]) for row in rows]
    nats_P = score_pairs(*model, pairs, LENGTH).nats_P
    assert values["nats"][:2] == (pytest.approx(nats_P.mean(), rel=1e-5), 6)
    assert values["nats"][2] == pytest.approx(nats_P.std() / math.sqrt(6), rel=0.15)


def test_a_budget_is_the_first_examples(model, rows) -> None:
    assert run(model, "seqio:spelt@spelt_tasks", 1)["exact"] == (1.0, 1, 0.0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("seqio:silent@spelt_tasks", r"targets.*predictions.*scores"),
        ("seqio:mixed@spelt_tasks", r"\bspelt\b"),
        ("seqio:unsplit@spelt_tasks", r"\btrain\b"),
        ("seqio:hollow@spelt_tasks", r"example 1\b.*'targets'"),
        ("seqio:broken@spelt_tasks", r"\bbroken\b.*RuntimeError.*no luck"),
        ("seqio:spellt@spelt_tasks", r"\bspelt_tasks\b.*\bspelt\b"),
        ("seqio:spelt@no_such_tasks", "'no_such_tasks'.*ModuleNotFoundError"),
        ("seqio:other@spelt_tasks", "'byte'"),
    ],
)
def test_an_unusable_task_is_one_line(model, rows, name: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        run(model, name)
    assert repr(name) in str(error.value)
    assert re.search(message, str(error.value).replace(repr(name), ""))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["seqio:spelt", "seqio:@module", "seqio:", "spelt@spelt_tasks"])
def test_a_name_has_a_task_and_a_module(name: str) -> None:
    with pytest.raises(InputError, match=f"{name!r}.*seqio:TASK@MODULE"):
        seqio_task(name, LENGTH)
