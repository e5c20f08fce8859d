"""lm-evaluation-harness over our models: what it reports is what plain sums over the same texts give."""

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

pytestmark = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm_eval is not installed")

VOCABULARY = ByteTokenizer()
LENGTH = 32
Found = dict[str, tuple[float, int, float]]
Ask = Callable[..., Found]


@pytest.fixture(scope="module")
def model() -> tuple[Decoder, Any]:
    """Random, and peaked, so that choices and greedy texts differ clearly."""
    decoder = Decoder(ModelConfig(vocab_size=VOCABULARY.size, width=32, depth=1, heads=2))
    params = decoder.init(jax.random.key(3), jnp.zeros((1, 2), jnp.int32))["params"]
    return decoder, jax.tree.map(lambda weights: 2 * weights, params)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tasks")


@pytest.fixture
def ask(model: tuple[Decoder, Any], folder: Path) -> Iterator[Ask]:
    def asked(name: str, budget: int = 1000, length: int = LENGTH) -> Found:
        (measure,) = tasks.lm_eval_tasks([name], folder, length)
        return measure.run(*model, VOCABULARY, jax.random.key(5), budget)

    return asked


def write_task(folder: Path, name: str, rows: list[dict[str, Any]], **config: Any) -> None:
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = {"task": name, "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": f"{name}.jsonl"}}}
    (folder / f"{name}.yaml").write_text(json.dumps(own | {"test_split": "test"} | config))


def rows_of(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tasks.BUILTIN_FOLDER / f"{name}.jsonl").read_text().splitlines()]


def ids(text: str) -> np.ndarray:
    return np.r_[VOCABULARY.eos_id, VOCABULARY.encode(text)]


def test_multiple_choice_is_what_plain_scores_say(
    model, ask: Ask, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    rows = rows_of("python_cloze")
    capfd.readouterr()
    found = ask("python_cloze")
    assert capfd.readouterr() == ("", "")
    assert not [record for record in caplog.records if not record.name.startswith("jax")]
    pairs, bytes_QK = [], []
    for row in rows:
        kept = row["context"].rstrip()
        scored = [row["context"][len(kept) :] + choice for choice in row["choices"]]
        pairs += [ContextPair(ids(kept), VOCABULARY.encode(text)) for text in scored]
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
    assert {metric: value for metric, (value, _, _) in found.items()} == pytest.approx(expected, rel=1e-4)
    assert 0 < hit_Q.mean() < 1
    assert found["accuracy"][1:] == (Q, pytest.approx(hit_Q.std(ddof=1) / math.sqrt(Q)))
    assert found["acc_norm"][1] == Q
    assert found["acc_norm"][2] > 0


def test_rolling_likelihood_predicts_each_byte_once_in_lm_evals_windows(model, ask: Ask) -> None:
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    texts = [row["text"] for row in rows_of("python_text")]
    assert any(len(text) > 2 * LENGTH for text in texts)
    nats = []
    for text in texts:
        cut = get_rolling_token_windows(VOCABULARY.encode(text).tolist(), VOCABULARY.eos_id, LENGTH, 1)
        pairs = [ContextPair(*make_disjoint_window(window)) for window in cut]
        assert sum(len(pair.continuation) for pair in pairs) == len(text.encode())
        nats.append(score_pairs(*model, pairs, LENGTH).nats_P.sum())
    sizes = [len(text.encode()) for text in texts]
    found = ask("python_text")
    assert found["bits_per_byte"][0] == pytest.approx(sum(nats) / sum(sizes) / math.log(2), rel=1e-5)
    assert found["byte_perplexity"][0] == pytest.approx(math.exp(sum(nats) / sum(sizes)), rel=1e-4)
    resampled = []
    for places in np.random.default_rng(0).integers(0, len(texts), (2000, len(texts))):
        resampled.append(np.take(nats, places).sum() / np.take(sizes, places).sum() / math.log(2))
    assert found["bits_per_byte"][1:] == (len(texts), pytest.approx(np.std(resampled), rel=0.15))


def test_perplexity_is_the_training_loss_on_the_same_text(model, folder: Path, ask: Ask) -> None:
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
    value, n, stderr = ask("whole")["bits_per_byte"]
    assert value == pytest.approx(nats / math.log(2), rel=1e-5)
    assert n == 1
    assert math.isnan(stderr)


def greedy(model: tuple[Decoder, Any], text: str, most: int) -> str:
    """Without a cache: what comes after the text in a row of fixed length does not matter."""
    tokens, start = np.zeros(32, np.int32), len(ids(text))
    tokens[:start] = ids(text)
    for place in range(start, start + most):
        tokens[place] = int(likeliest(model[0], model[1], tokens[None])[0, place - 1])
    return VOCABULARY.decode(tokens[start : start + most])


@functools.partial(jax.jit, static_argnames="decoder")
def likeliest(decoder: Decoder, params: Any, tokens_BT: jax.Array) -> jax.Array:
    return logits(decoder, params, tokens_BT).argmax(axis=-1)


def test_generated_text_is_greedy_and_ends_at_the_first_stop(model, folder: Path, ask: Ask) -> None:
    prompts = ["def ", "import ", "class A", "x = "]
    said = [greedy(model, prompt, 6) for prompt in prompts]
    stop = said[0][3]
    answers = [text.split(stop)[0] for text in said]
    assert answers != said
    rows = [{"prompt": prompt, "answer": answer} for prompt, answer in zip(prompts, answers, strict=True)]
    write_task(
        folder,
        "said",
        [*rows, {"prompt": "class B", "answer": "nothing that it says"}],
        output_type="generate_until",
        doc_to_text="{{prompt}}",
        doc_to_target="{{answer}}",
        generation_kwargs={"until": [stop, "never said"], "max_gen_toks": 6, "do_sample": False},
        metric_list=[{"metric": "exact_match"}],
    )
    assert ask("said")["exact_match"] == (pytest.approx(4 / 5), 5, pytest.approx(1 / 5))


def test_the_rest_of_a_word_is_right_where_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    from scaling.measurements.lm_eval import model as harness_model

    rows = rows_of("finish_word")
    known = {row["context"]: row["answer"] for row in rows[::3]}

    def answers(asked: Any, prompts: list[np.ndarray], *_: Any) -> list[np.ndarray]:
        return [VOCABULARY.encode(known.get(VOCABULARY.decode(prompt), "?") + " more") for prompt in prompts]

    monkeypatch.setattr(harness_model, "completions", answers)
    (measure,) = tasks.lm_eval_tasks(["finish_word"], None, LENGTH)
    found = measure.run(None, None, VOCABULARY, jax.random.key(0), 1000)  # pyrefly: ignore
    assert found["exact_match"][:2] == (pytest.approx(len(known) / len(rows)), len(rows))
    assert found["accuracy"] == found["centred"] == found["exact_match"]
    assert (found["chance"], found["ceiling"]) == ((0.0, 0, 0.0), (1.0, 0, 0.0))


def test_shipped_questions_have_one_answer_each() -> None:
    assert [len(rows_of(name)) for name in ("python_cloze", "python_text", "finish_word")] == [40, 30, 49]
    for row in rows_of("python_cloze"):
        assert len({*row["choices"]}) == 4
        assert 0 <= row["answer"] < 4
    assert len({row["context"] for row in rows_of("finish_word")}) == 49
    assert not any(set(row["answer"]) & set(' \n():,."') for row in rows_of("finish_word"))


def test_a_budget_draws_the_same_documents_for_every_model(model, ask: Ask) -> None:
    few = ask("python_cloze", budget=9)
    assert few == ask("python_cloze", budget=9)
    assert few["accuracy"][1] == 9
    (measure,) = tasks.lm_eval_tasks(["python_cloze"], None, LENGTH)
    others = [measure.run(*model, VOCABULARY, jax.random.key(seed), 9) for seed in range(3)]
    assert len({found["bits_per_byte"] for found in (few, *others)}) > 1


def test_a_group_is_all_its_questions_together(folder: Path, ask: Ask) -> None:
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
    both, two, four = ask("both"), ask("two"), ask("four")
    assert both["chance"] == (pytest.approx((8 / 2 + 4 / 4) / 12), 0, 0.0)
    assert both["accuracy"][0] == pytest.approx((8 * two["accuracy"][0] + 4 * four["accuracy"][0]) / 12)
    assert both["choice_nats"][0] == pytest.approx((8 * two["choice_nats"][0] + 4 * four["choice_nats"][0]) / 12)
    assert both["accuracy"][1] == 12


def test_a_continuation_longer_than_the_model_reads_is_scored_whole(model) -> None:
    from scaling.measurements.prompting import PromptedModel, log_likelihoods

    asked = PromptedModel(*model, VOCABULARY, LENGTH, jax.random.key(0))
    whole = ContextPair(ids("def f():\n"), VOCABULARY.encode("    return 1\n" * 7))
    parts = [whole.continuation[:LENGTH], whole.continuation[LENGTH : 2 * LENGTH], whole.continuation[2 * LENGTH :]]
    before = [whole.context, np.r_[whole.context, parts[0]], np.r_[whole.context, parts[0], parts[1]]]
    nats = [
        float(score_pairs(*model, [ContextPair(*one)], LENGTH).nats_P[0]) for one in zip(before, parts, strict=True)
    ]
    short, padded = ContextPair(ids("x"), VOCABULARY.encode("y")), np.r_[ids("x"), np.zeros(30, np.int32)][None]
    best = ContextPair(short.context, [int(likeliest(*model, padded)[0, 1])])
    found, is_greedy = log_likelihoods(asked, [short, whole, ContextPair(ids(""), []), short, best])
    assert is_greedy.tolist() == [False, False, True, False, True]
    assert found[1] == pytest.approx(-sum(nats), rel=1e-5)
    assert found[2] == 0
    assert found[0] == found[3] == pytest.approx(-float(score_pairs(*model, [short], LENGTH).nats_P[0]))


def test_a_boundary_loses_no_token_in_any_vocabulary(tmp_path: Path) -> None:
    from scaling.measurements.lm_eval.model import encode_pair

    pieces = train_sentencepiece(["the cat sat on the mat and the dog sat too\n"] * 50, 300, tmp_path / "p.model")
    for vocabulary in (VOCABULARY, pieces):
        for context, continuation in (
            ("the cat", " sat"),
            ("the cat ", "sat"),
            ("the c", "at sat"),
            ("", "the"),
            ("é ", "▁"),
        ):
            found = encode_pair(vocabulary, context, continuation)
            assert found.context[0] == vocabulary.eos_id
            assert vocabulary.decode([*found.context[1:], *found.continuation]) == context + continuation
            assert vocabulary.decode(found.continuation).endswith(continuation)
            assert context.startswith(vocabulary.decode(found.context))
            assert not vocabulary.decode(found.context).endswith(" ")
            assert np.array_equal([*found.context[1:], *found.continuation], vocabulary.encode(context + continuation))


def test_lm_eval_leaves_the_process_as_it_was(ask: Ask) -> None:
    import datasets.config
    import tqdm

    random.seed(11)
    np.random.seed(11)  # noqa: NPY002
    expected = random.random(), np.random.random()  # noqa: NPY002
    random.seed(11)
    np.random.seed(11)  # noqa: NPY002
    before = datasets.config.HF_HUB_OFFLINE, tqdm.tqdm.__init__
    ask("python_cloze", budget=2)
    assert (random.random(), np.random.random()) == expected  # noqa: NPY002
    assert (datasets.config.HF_HUB_OFFLINE, tqdm.tqdm.__init__) == before


def refused(name: str, folder: Path | None = None, known: tuple[str, ...] = ()) -> str:
    def run() -> None:
        (measure,) = tasks.lm_eval_tasks([name], folder, LENGTH, known)
        measure.run(None, None, VOCABULARY, jax.random.key(0), 3)  # pyrefly: ignore

    with pytest.raises(InputError) as error:
        run()
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.slow
def test_a_public_task_is_known_and_what_keeps_its_data_away_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets.config
    import huggingface_hub.constants

    for module in (datasets.config, huggingface_hub.constants):
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", True)
    said = refused("winogrande")
    assert re.search(r"'winogrande'.*\ballenai/winogrande\b.*\bHF_DATASETS_OFFLINE\b", said)
    assert re.search(r"'hellaswagg'.*\bhellaswag\b", refused("hellaswagg"))
    assert re.search(r"'aditions'.*\baddition\b", refused("aditions", known=("addition",)))


def test_what_is_wrong_is_said_in_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert re.search(f"include.*'{folder}/none'", refused("python_cloze", folder / "none"))
    write_task(folder, "absent", [], output_type="generate_until", doc_to_text="{{a}}", doc_to_target="{{b}}")
    (folder / "absent.jsonl").unlink()
    assert re.search(r"'absent'.*\bjson\b", refused("absent", folder))
    (folder / "mine.yaml").write_text("task: [mine\noutput_type: multiple_choice\n")
    assert re.search(rf"'mine'.*{folder}/mine\.yaml.*ParserError", refused("mine", folder))
    (folder / "mine.yaml").rename(folder / "another.yaml")
    assert re.search(rf"'mine'.*{folder}/another\.yaml.*ParserError", refused("mine", folder))
    monkeypatch.setitem(sys.modules, "lm_eval.evaluator", None)
    assert re.search(r"lm_eval.*scaling-laws\[eval\]", refused("python_cloze"))
