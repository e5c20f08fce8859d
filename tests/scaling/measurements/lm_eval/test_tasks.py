"""Tasks of lm-evaluation-harness on a model, compared with numbers computed from plain sums over the same texts."""

from __future__ import annotations

import functools
import importlib.util
import json
import math
import random
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaling.config.run_config import ModelConfig
from scaling.data.tokenizer import ByteTokenizer, train_sentencepiece
from scaling.errors import InputError
from scaling.measurements.likelihood import ContextPair, score_pairs
from scaling.measurements.lm_eval import tasks
from scaling.model.decoder import Decoder, features, head_weights, logits
from scaling.model.loss import chunked_nats

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm_eval is not installed"),
    pytest.mark.usefixtures("unoptimized_programs"),
]

TOKENIZER = ByteTokenizer()
LENGTH = 32
Values = dict[str, tuple[float, int, float]]
Measure = Callable[..., Values]


@pytest.fixture(scope="module")
def model() -> tuple[Decoder, Any]:
    """A random model with doubled weights, so that choices and greedy texts differ clearly."""
    decoder = Decoder(ModelConfig(vocab_size=TOKENIZER.size, width=32, depth=1, heads=2))
    params = decoder.init(jax.random.key(3), jnp.zeros((1, 2), jnp.int32))["params"]
    return decoder, jax.tree.map(lambda weights: 2 * weights, params)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tasks")


@pytest.fixture
def measure(model: tuple[Decoder, Any], folder: Path) -> Iterator[Measure]:
    def run(name: str, budget: int = 1000, length: int = LENGTH) -> Values:
        (measurement,) = tasks.lm_eval_tasks([name], folder, length)
        return measurement.run(*model, TOKENIZER, jax.random.key(5), budget)

    return run


def write_task(folder: Path, name: str, rows: list[dict[str, Any]], **config: Any) -> None:
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = {"task": name, "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": f"{name}.jsonl"}}}
    (folder / f"{name}.yaml").write_text(json.dumps(own | {"test_split": "test"} | config))


def rows_of(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tasks.BUILTIN_FOLDER / f"{name}.jsonl").read_text().splitlines()]


def ids(text: str) -> np.ndarray:
    return np.r_[TOKENIZER.eos_id, TOKENIZER.encode(text)]


def test_multiple_choice_agrees_with_plain_scores(
    model, measure: Measure, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    rows = rows_of("python_cloze")
    capfd.readouterr()
    values = measure("python_cloze")
    assert capfd.readouterr() == ("", "")
    assert not [record for record in caplog.records if not record.name.startswith("jax")]
    pairs, bytes_QK = [], []
    for row in rows:
        kept = row["context"].rstrip()
        scored = [row["context"][len(kept) :] + choice for choice in row["choices"]]
        pairs += [ContextPair(ids(kept), TOKENIZER.encode(text)) for text in scored]
        bytes_QK.append([len(text) for text in scored])
    nats_QK = score_pairs(*model, pairs, LENGTH).nats_P.reshape(-1, 4)
    answers_Q, Q = np.array([row["answer"] for row in rows]), len(rows)
    right_Q = nats_QK[np.arange(Q), answers_Q]
    hit_Q = nats_QK.argmin(axis=1) == answers_Q
    sizes_QK = np.array([[len(choice) for choice in row["choices"]] for row in rows])
    expected = {
        "accuracy": hit_Q.mean(),
        "centred": (hit_Q.mean() - 0.25) / 0.75,
        "choice_nats": (right_Q + np.log(np.exp(-nats_QK).sum(axis=1))).mean(),
        "bits_per_byte": right_Q.sum() / math.log(2) / np.array(bytes_QK)[np.arange(Q), answers_Q].sum(),
        "acc_norm": ((nats_QK / sizes_QK).argmin(axis=1) == answers_Q).mean(),
        "chance": 0.25,
        "ceiling": 1.0,
    }
    assert {metric: value for metric, (value, _, _) in values.items()} == pytest.approx(expected, rel=1e-4)
    assert 0 < hit_Q.mean() < 1
    assert values["accuracy"][1:] == (Q, pytest.approx(hit_Q.std(ddof=1) / math.sqrt(Q)))
    assert values["acc_norm"][1] == Q
    assert values["acc_norm"][2] > 0


def test_rolling_likelihood_predicts_each_byte_once_in_lm_evals_windows(model, measure: Measure) -> None:
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    texts = [row["text"] for row in rows_of("python_text")]
    assert any(len(text) > 2 * LENGTH for text in texts)
    nats = []
    for text in texts:
        cut = get_rolling_token_windows(TOKENIZER.encode(text).tolist(), TOKENIZER.eos_id, LENGTH, 1)
        pairs = [ContextPair(*make_disjoint_window(window)) for window in cut]
        assert sum(len(pair.continuation) for pair in pairs) == len(text.encode())
        nats.append(score_pairs(*model, pairs, LENGTH).nats_P.sum())
    sizes = [len(text.encode()) for text in texts]
    values = measure("python_text")
    assert values["bits_per_byte"][0] == pytest.approx(sum(nats) / sum(sizes) / math.log(2), rel=1e-5)
    assert values["byte_perplexity"][0] == pytest.approx(math.exp(sum(nats) / sum(sizes)), rel=1e-4)
    resampled = []
    for places in np.random.default_rng(0).integers(0, len(texts), (2000, len(texts))):
        resampled.append(np.take(nats, places).sum() / np.take(sizes, places).sum() / math.log(2))
    assert values["bits_per_byte"][1:] == (len(texts), pytest.approx(np.std(resampled), rel=0.15))


def test_perplexity_is_the_training_loss_on_the_same_text(model, folder: Path, measure: Measure) -> None:
    text = "".join(row["text"] for row in rows_of("python_text"))[: 4 * LENGTH]
    write_task(
        folder,
        "whole",
        [{"text": text}],
        output_type="loglikelihood_rolling",
        doc_to_text="",
        doc_to_target="{{text}}",
        metric_list=[{"metric": "bits_per_byte"}],
    )
    tokens_WS = np.lib.stride_tricks.sliding_window_view(ids(text), LENGTH + 1)[::LENGTH]
    x_BTM = features(*model, jnp.asarray(tokens_WS[:, :-1]))
    nats = float(chunked_nats(x_BTM, head_weights(*model), jnp.asarray(tokens_WS[:, 1:]), 1).mean())
    value, n, stderr = measure("whole")["bits_per_byte"]
    assert value == pytest.approx(nats / math.log(2), rel=1e-5)
    assert n == 1
    assert math.isnan(stderr)


def greedy(model: tuple[Decoder, Any], text: str, most: int) -> str:
    """Greedy decoding without a cache; the zeros after the text in a row of fixed length do not matter."""
    tokens, start = np.zeros(32, np.int32), len(ids(text))
    tokens[:start] = ids(text)
    for place in range(start, start + most):
        tokens[place] = int(likeliest(model[0], model[1], tokens[None])[0, place - 1])
    return TOKENIZER.decode(tokens[start : start + most])


@functools.partial(jax.jit, static_argnames="decoder")
def likeliest(decoder: Decoder, params: Any, tokens_BT: jax.Array) -> jax.Array:
    return logits(decoder, params, tokens_BT).argmax(axis=-1)


def test_generated_text_is_greedy_and_ends_at_the_first_stop(model, folder: Path, measure: Measure) -> None:
    prompts = ["def ", "import ", "class A", "x = "]
    texts = [greedy(model, prompt, 6) for prompt in prompts]
    stop = texts[0][3]
    answers = [text.split(stop)[0] for text in texts]
    assert answers != texts
    rows = [{"prompt": prompt, "answer": answer} for prompt, answer in zip(prompts, answers, strict=True)]
    write_task(
        folder,
        "greedy",
        [*rows, {"prompt": "class B", "answer": "not what it generates"}],
        output_type="generate_until",
        doc_to_text="{{prompt}}",
        doc_to_target="{{answer}}",
        generation_kwargs={"until": [stop, "never generated"], "max_gen_toks": 6, "do_sample": False},
        metric_list=[{"metric": "exact_match"}],
    )
    assert measure("greedy")["exact_match"] == (pytest.approx(4 / 5), 5, pytest.approx(1 / 5))


def test_finish_word_counts_completions_that_match(monkeypatch: pytest.MonkeyPatch) -> None:
    from scaling.measurements.lm_eval import model as lm_eval_model

    rows = rows_of("finish_word")
    known = {row["context"]: row["answer"] for row in rows[::3]}

    def completions(prompted: Any, prompts: list[np.ndarray], *_: Any) -> list[np.ndarray]:
        return [TOKENIZER.encode(known.get(TOKENIZER.decode(prompt), "?") + " more") for prompt in prompts]

    monkeypatch.setattr(lm_eval_model, "completions", completions)
    (measurement,) = tasks.lm_eval_tasks(["finish_word"], None, LENGTH)
    values = measurement.run(None, None, TOKENIZER, jax.random.key(0), 1000)  # pyrefly: ignore
    assert values["exact_match"][:2] == (pytest.approx(len(known) / len(rows)), len(rows))
    assert values["accuracy"] == values["centred"] == values["exact_match"]
    assert (values["chance"], values["ceiling"]) == ((0.0, 0, 0.0), (1.0, 0, 0.0))


def test_builtin_questions_have_one_answer_each() -> None:
    assert [len(rows_of(name)) for name in ("python_cloze", "python_text", "finish_word")] == [40, 30, 49]
    for row in rows_of("python_cloze"):
        assert len({*row["choices"]}) == 4
        assert 0 <= row["answer"] < 4
    assert len({row["context"] for row in rows_of("finish_word")}) == 49
    assert not any(set(row["answer"]) & set(' \n():,."') for row in rows_of("finish_word"))


def test_a_budget_draws_the_same_documents_for_every_model(model, measure: Measure) -> None:
    few = measure("python_cloze", budget=9)
    assert few == measure("python_cloze", budget=9)
    assert few["accuracy"][1] == 9
    (measurement,) = tasks.lm_eval_tasks(["python_cloze"], None, LENGTH)
    others = [measurement.run(*model, TOKENIZER, jax.random.key(seed), 9) for seed in range(3)]
    assert len({values["bits_per_byte"] for values in (few, *others)}) > 1


def test_a_group_is_all_its_questions_together(folder: Path, measure: Measure) -> None:
    common = {
        "output_type": "multiple_choice",
        "doc_to_text": "{{q}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "a",
        "metric_list": [{"metric": "acc"}],
    }
    write_task(folder, "two", [{"q": f"{i} is", "choices": ["odd", "even"], "a": i % 2} for i in range(8)], **common)
    write_task(
        folder,
        "four",
        [{"q": f"{i} +", "choices": ["one", "two", "six", "a"], "a": i % 4} for i in range(4)],
        **common,
    )
    (folder / "both.yaml").write_text(json.dumps({"group": "both", "task": ["two", "four"]}))
    both, two, four = measure("both"), measure("two"), measure("four")
    assert both["chance"] == (pytest.approx((8 / 2 + 4 / 4) / 12), 0, 0.0)
    assert both["accuracy"][0] == pytest.approx((8 * two["accuracy"][0] + 4 * four["accuracy"][0]) / 12)
    assert both["choice_nats"][0] == pytest.approx((8 * two["choice_nats"][0] + 4 * four["choice_nats"][0]) / 12)
    assert both["accuracy"][1] == 12


def test_a_continuation_longer_than_the_model_reads_is_scored_whole(model) -> None:
    from scaling.measurements.prompting import PromptedModel, log_likelihoods

    prompted = PromptedModel(*model, TOKENIZER, LENGTH, jax.random.key(0))
    whole = ContextPair(ids("def f():\n"), TOKENIZER.encode("    return 1\n" * 7))
    parts = [whole.continuation[:LENGTH], whole.continuation[LENGTH : 2 * LENGTH], whole.continuation[2 * LENGTH :]]
    before = [whole.context, np.r_[whole.context, parts[0]], np.r_[whole.context, parts[0], parts[1]]]
    nats = [
        float(score_pairs(*model, [ContextPair(*one)], LENGTH).nats_P[0]) for one in zip(before, parts, strict=True)
    ]
    short, padded = ContextPair(ids("x"), TOKENIZER.encode("y")), np.r_[ids("x"), np.zeros(30, np.int32)][None]
    best = ContextPair(short.context, [int(likeliest(*model, padded)[0, 1])])
    log_P, greedy_P = log_likelihoods(prompted, [short, whole, ContextPair(ids(""), []), short, best])
    assert greedy_P.tolist() == [False, False, True, False, True]
    assert log_P[1] == pytest.approx(-sum(nats), rel=1e-5)
    assert log_P[2] == 0
    assert log_P[0] == log_P[3] == pytest.approx(-float(score_pairs(*model, [short], LENGTH).nats_P[0]))


def test_no_token_is_lost_at_the_boundary_of_context_and_continuation(tmp_path: Path) -> None:
    from scaling.measurements.lm_eval.model import encode_pair

    pieces = train_sentencepiece(["the cat sat on the mat and the dog sat too\n"] * 50, 300, tmp_path / "p.model")
    for tokenizer in (TOKENIZER, pieces):
        for context, continuation in (
            ("the cat", " sat"),
            ("the cat ", "sat"),
            ("the c", "at sat"),
            ("", "the"),
            ("é ", "▁"),
        ):
            pair = encode_pair(tokenizer, context, continuation)
            assert pair.context[0] == tokenizer.eos_id
            assert tokenizer.decode([*pair.context[1:], *pair.continuation]) == context + continuation
            assert tokenizer.decode(pair.continuation).endswith(continuation)
            assert context.startswith(tokenizer.decode(pair.context))
            assert not tokenizer.decode(pair.context).endswith(" ")
            assert np.array_equal([*pair.context[1:], *pair.continuation], tokenizer.encode(context + continuation))


def test_lm_eval_leaves_the_process_as_it_was(measure: Measure) -> None:
    import datasets.config
    import tqdm

    random.seed(11)
    np.random.seed(11)  # noqa: NPY002
    expected = random.random(), np.random.random()  # noqa: NPY002
    random.seed(11)
    np.random.seed(11)  # noqa: NPY002
    before = datasets.config.HF_HUB_OFFLINE, tqdm.tqdm.__init__
    measure("python_cloze", budget=2)
    assert (random.random(), np.random.random()) == expected  # noqa: NPY002
    assert (datasets.config.HF_HUB_OFFLINE, tqdm.tqdm.__init__) == before


def error_of(name: str, folder: Path | None = None, builtin_names: tuple[str, ...] = ()) -> str:
    def run() -> None:
        (measurement,) = tasks.lm_eval_tasks([name], folder, LENGTH, builtin_names)
        measurement.run(None, None, TOKENIZER, jax.random.key(0), 3)  # pyrefly: ignore

    with pytest.raises(InputError) as error:
        run()
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.slow
def test_a_public_task_is_known_and_its_missing_data_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets.config
    import huggingface_hub.constants

    for module in (datasets.config, huggingface_hub.constants):
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", True)
    message = error_of("winogrande")
    assert re.search(r"'winogrande'.*\ballenai/winogrande\b.*\bHF_DATASETS_OFFLINE\b", message)
    assert re.search(r"'hellaswagg'.*\bhellaswag\b", error_of("hellaswagg"))
    assert re.search(r"'aditions'.*\baddition\b", error_of("aditions", builtin_names=("addition",)))


def test_errors_are_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert re.search(f"include.*'{folder}/none'", error_of("python_cloze", folder / "none"))
    write_task(folder, "absent", [], output_type="generate_until", doc_to_text="{{a}}", doc_to_target="{{b}}")
    (folder / "absent.jsonl").unlink()
    assert re.search(r"'absent'.*\bjson\b", error_of("absent", folder))
    (folder / "mine.yaml").write_text("task: [mine\noutput_type: multiple_choice\n")
    assert re.search(rf"'mine'.*{folder}/mine\.yaml.*ParserError", error_of("mine", folder))
    (folder / "mine.yaml").rename(folder / "another.yaml")
    assert re.search(rf"'mine'.*{folder}/another\.yaml.*ParserError", error_of("mine", folder))
    monkeypatch.setitem(sys.modules, "lm_eval.evaluator", None)
    assert re.search(r"lm_eval.*scaling-laws\[eval\]", error_of("python_cloze"))
