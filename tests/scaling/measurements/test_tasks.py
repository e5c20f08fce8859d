"""The built-in tasks: answerable by whoever sees the question, right answers at random places, chance for a model that
knows nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaling.config.run_config import ModelConfig
from scaling.data.prepare import prepare
from scaling.data.shards import TokenShards, open_shards, read_documents
from scaling.data.tokenizer import ByteTokenizer
from scaling.errors import InputError
from scaling.measurements import Measurement, multiple_choice
from scaling.measurements.addition import addition, one_digit_changes
from scaling.measurements.bracket_closing import closers, match_brackets
from scaling.measurements.brackets import brackets
from scaling.measurements.cloze import cloze
from scaling.measurements.copying import copy
from scaling.measurements.multiple_choice import Question
from scaling.measurements.recall import recall
from scaling.model.decoder import Decoder

LENGTH, BYTES = 64, ByteTokenizer()
MODEL = Decoder(ModelConfig(vocab_size=259, width=16, depth=1, heads=2))


def expression(generator: np.random.Generator, depth: int = 0) -> str:
    """Names in brackets of three kinds, now and then within one another."""
    word = "".join(generator.choice(list("abcdefgh"), 5))
    if depth == 3 or generator.random() < 0.5:
        return word
    opener, closer = ("()", "[]", "{}")[generator.integers(3)]
    return f"{word}{opener}{expression(generator, depth + 1)}, {expression(generator, depth + 1)}{closer}"


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> TokenShards:
    """A corpus of 300 documents of 30 expressions each."""
    folder, generator = tmp_path_factory.mktemp("code"), np.random.default_rng(0)
    texts = ["\n".join(expression(generator) for _ in range(30)) for _ in range(300)]
    (folder / "code.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    name = f"jsonl:{folder}/code.jsonl"
    prepare(name, folder, backend="plain")
    return open_shards(folder, name)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Question]]:
    """The questions that a measure asks, caught on their way to the model."""
    caught = []

    def nats(model: object, params: object, questions: list[Question], length: int) -> np.ndarray:
        caught.append(questions)
        return np.array([[choice != one.answer for choice in range(len(one.choices))] for one in questions], float)

    monkeypatch.setattr(multiple_choice, "score_choices", nats)

    def ask(measure: Measurement, seed: int = 0, budget: int = 300) -> list[Question]:
        found = measure.run(MODEL, None, BYTES, jax.random.key(seed), budget)
        assert found["accuracy"] == (1.0, budget, 0.0), "an oracle comes to the ceiling"
        assert found["centred"][0] == measure.ceiling == found["ceiling"][0] == 1.0
        assert found["chance"][0] == pytest.approx(measure.chance, rel=1e-8)
        return caught[-1]

    return ask


def seen(question: Question) -> str:
    return BYTES.decode(question.context)


def still_open(text: str) -> str:
    """The closer due after a text that may begin inside brackets."""
    stack = ""
    for character in text:
        if character in "([{":
            stack += ")]}"["([{".index(character)]
        elif character in ")]}" and stack.endswith(character):
            stack = stack[:-1]
        elif character in ")]}":
            stack = ""
    return stack[-1]


def begun_again(text: str) -> str:
    whole, _, again = text.partition("\n")
    assert whole.startswith(again)
    return whole[len(again) :][:3]


def value_of(text: str) -> str:
    *lines, last = text.split("\n")
    return dict(line.split(" = ") for line in lines)[last.removesuffix(" = ")]


def total(text: str) -> str:
    *examples, last = text.split("\n")
    for line in examples:
        a, b, c = re.split(r"[+=]", line)
        assert int(a) + int(b) == int(c)
    a, b = last.removesuffix("=").split("+")
    return str(int(a) + int(b))


SOLVERS: dict[Callable[[int], Measurement], Callable[[str], str]] = {
    brackets: still_open,
    copy: begun_again,
    recall: value_of,
    addition: total,
}


@pytest.mark.parametrize("task", SOLVERS, ids=lambda task: task.__name__)
def test_whoever_sees_a_made_up_question_can_answer_it(task: Callable[[int], Measurement], asked) -> None:
    for question in asked(task(LENGTH)):
        answers = [BYTES.decode(choice) for choice in question.choices]
        assert question.context[0] == BYTES.eos_id
        assert answers.index(SOLVERS[task](seen(question))) == question.answer


def test_closers_follow_from_what_is_shown_of_the_held_out_text(code: TokenShards, asked) -> None:
    held_out = [BYTES.decode(ids) for ids in read_documents(code, code.validation)]
    questions = asked(closers(code, LENGTH))
    for question in questions:
        text, answer = seen(question), BYTES.decode(question.choices[question.answer])
        assert still_open(text) == answer
        assert len(text) == LENGTH
        assert any(text + answer in document for document in held_out)
    kinds = [BYTES.decode(question.choices[question.answer]) for question in questions]
    assert [kinds.count(kind) for kind in ")]}"] == pytest.approx([100] * 3, abs=30), "however rare it is in code"


def test_cloze_goes_on_as_the_held_out_text_does(code: TokenShards, asked) -> None:
    held_out = [ids.tobytes() for ids in read_documents(code, code.validation)]
    train = np.concatenate(read_documents(code, code.train)).tobytes()
    for question in asked(cloze(code, LENGTH), budget=60):
        context = question.context[question.context != BYTES.eos_id].astype(np.int32)
        home = [
            ids
            for ids in held_out
            if np.r_[context, question.choices[question.answer]].astype(np.int32).tobytes() in ids
        ]
        assert len(home) == 1
        assert home[0][:400] not in train
        for place, choice in enumerate(question.choices):
            assert len(choice) == 16
            assert place == question.answer or any(choice.tobytes() in ids for ids in held_out if ids != home[0])


@pytest.mark.parametrize("task", [*SOLVERS, closers, cloze], ids=lambda task: task.__name__)
def test_questions_are_a_function_of_seed_and_budget_and_fit_the_model(
    task: Callable, code: TokenShards, asked
) -> None:
    measure = task(code, LENGTH) if task in (cloze, closers) else task(LENGTH)
    again = task(code, LENGTH) if task in (cloze, closers) else task(LENGTH)

    def spelt(questions: list[Question]) -> list[tuple[bytes, ...]]:
        return [(one.context.tobytes(), *(choice.tobytes() for choice in one.choices)) for one in questions]

    first = asked(measure)
    assert spelt(asked(again)) == spelt(first)
    assert spelt(asked(again, budget=100)) == spelt(first)[:100], "a smaller budget asks the first of them"
    assert spelt(asked(again, seed=1)) != spelt(first)
    K = round(1 / measure.chance)
    places = np.bincount([one.answer for one in first], minlength=K)
    assert len(places) == K
    assert (abs(places - 300 / K) < 4 * np.sqrt(300 / K)).all(), "anywhere, with equal chances"
    for one in first:
        assert len({choice.tobytes() for choice in one.choices}) == K, "no two choices are the same"
        assert len({len(choice) for choice in one.choices}) == 1, "none is likelier because it is shorter"
        assert len(one.context) + len(one.choices[0]) <= LENGTH + 1


def test_a_fresh_model_is_within_noise_of_chance(code: TokenShards) -> None:
    params = MODEL.init(jax.random.key(1), jnp.zeros((1, 2), jnp.int32))["params"]
    for measure in (cloze(code, LENGTH), closers(code, LENGTH), *(task(LENGTH) for task in SOLVERS)):
        found = measure.run(MODEL, params, BYTES, jax.random.key(0), 256)
        accuracy, n, stderr = found["accuracy"]
        assert n == 256
        assert abs(accuracy - measure.chance) < 4 * stderr, measure.name
        assert found["bits_per_byte"][0] == pytest.approx(8, abs=0.5), "about one of 259 ids a byte"


def test_what_a_model_or_a_corpus_cannot_hold_is_one_line(code: TokenShards, corpora: Path) -> None:
    with pytest.raises(InputError, match=r"copy\D*\d+\b.*sequence_length\D*16\b"):
        copy(16).run(MODEL, None, BYTES, jax.random.key(0), 10)
    with pytest.raises(InputError, match=r"closers.*'walk'\D*0\b.*'\]'"):
        closers(open_shards(corpora, "walk"), LENGTH)
    short = replace(code, validation=replace(code.validation, tokens=40))
    with pytest.raises(InputError, match=r"cloze.*code\.jsonl'\D*0\D*32\b"):
        cloze(short, LENGTH)


def test_cloze_asks_of_documents_by_their_size_however_they_differ(
    code: TokenShards, asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = np.random.default_rng(0)
    long, short = generator.integers(100, 200, 10_000), generator.integers(200, 259, 132)
    monkeypatch.setattr("scaling.measurements.cloze.read_documents", lambda *_: [short, long])
    from_long = [(one.choices[one.answer] < 200).all() for one in asked(cloze(code, LENGTH), budget=200)]
    assert 0.93 < np.mean(from_long) < 1, "about 99 of 100 places"
    repeated = [np.full(100, 7), np.full(80, 7)]
    monkeypatch.setattr("scaling.measurements.cloze.read_documents", lambda *_: repeated)
    with pytest.raises(InputError, match=r"cloze.*code\.jsonl'"):
        asked(cloze(code, LENGTH))


def test_pairs_of_brackets_and_what_breaks_them() -> None:
    assert match_brackets("f(a[1], {2})") == [(3, 5), (8, 10), (1, 11)]
    assert match_brackets("(a] b)") == [], "a closer of the wrong kind ends what was open"


def test_wrong_sums_are_sums_and_differ_in_one_digit(asked) -> None:
    assert one_digit_changes(120, 20, 198) == [[], [f"1{d}0" for d in "013456789"], [f"12{d}" for d in "123456789"]]
    assert one_digit_changes(15, 2, 18) == [[], ["10", "11", "12", "13", "14", "16", "17", "18"]]
    for question in asked(addition(LENGTH)):
        columns = zip(*(BYTES.decode(choice) for choice in question.choices), strict=True)
        assert sorted(len(set(column)) for column in columns)[-2:] == [1, 4], "all in the same place"


@pytest.mark.parametrize("digits", [1, 3])
def test_numbers_of_other_lengths_are_added_too(digits: int, asked) -> None:
    for question in asked(addition(LENGTH, digits)):
        assert BYTES.decode(question.choices[question.answer]) == total(seen(question))
        assert re.search(rf"\n\d{{{digits}}}\+\d{{{digits}}}=$", seen(question))
