"""The built-in tasks: the question determines the answer, right choices have random indices, and a model that knows
nothing is at chance."""

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

pytestmark = pytest.mark.usefixtures("unoptimized_programs")

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
def make_questions(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Question]]:
    """The questions of a measurement, intercepted before they reach the model."""
    intercepted = []

    def score_choices(model: object, params: object, questions: list[Question], sequence_length: int) -> np.ndarray:
        intercepted.append(questions)
        return np.array([[choice != one.answer for choice in range(len(one.choices))] for one in questions], float)

    monkeypatch.setattr(multiple_choice, "score_choices", score_choices)

    def make(measurement: Measurement, seed: int = 0, budget: int = 300) -> list[Question]:
        values = measurement.run(MODEL, None, BYTES, jax.random.key(seed), budget)
        assert values["accuracy"] == (1.0, budget, 0.0), "an oracle reaches the ceiling"
        assert values["centred"][0] == measurement.ceiling == values["ceiling"][0] == 1.0
        assert values["chance"][0] == pytest.approx(measurement.chance, rel=1e-8)
        return intercepted[-1]

    return make


def context_text(question: Question) -> str:
    return BYTES.decode(question.context)


def due_closer(text: str) -> str:
    """The closing bracket due after a text, which may begin inside brackets."""
    stack = ""
    for character in text:
        if character in "([{":
            stack += ")]}"["([{".index(character)]
        elif character in ")]}" and stack.endswith(character):
            stack = stack[:-1]
        elif character in ")]}":
            stack = ""
    return stack[-1]


def next_letters(text: str) -> str:
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
    brackets: due_closer,
    copy: next_letters,
    recall: value_of,
    addition: total,
}


@pytest.mark.parametrize("task", SOLVERS, ids=lambda task: task.__name__)
def test_a_synthetic_question_determines_its_answer(task: Callable[[int], Measurement], make_questions) -> None:
    for question in make_questions(task(LENGTH)):
        answers = [BYTES.decode(choice) for choice in question.choices]
        assert question.context[0] == BYTES.eos_id
        assert answers.index(SOLVERS[task](context_text(question))) == question.answer


def test_the_context_determines_the_closing_bracket(code: TokenShards, make_questions) -> None:
    held_out = [BYTES.decode(ids) for ids in read_documents(code, code.validation)]
    questions = make_questions(closers(code, LENGTH))
    for question in questions:
        text, answer = context_text(question), BYTES.decode(question.choices[question.answer])
        assert due_closer(text) == answer
        assert len(text) == LENGTH
        assert any(text + answer in document for document in held_out)
    kinds = [BYTES.decode(question.choices[question.answer]) for question in questions]
    assert [kinds.count(kind) for kind in ")]}"] == pytest.approx([100] * 3, abs=30), (
        "although they are not equally frequent in the corpus"
    )


def test_the_right_choice_of_cloze_continues_the_validation_text(code: TokenShards, make_questions) -> None:
    held_out = [ids.tobytes() for ids in read_documents(code, code.validation)]
    train = np.concatenate(read_documents(code, code.train)).tobytes()
    for question in make_questions(cloze(code, LENGTH), budget=60):
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
    task: Callable, code: TokenShards, make_questions
) -> None:
    measurement = task(code, LENGTH) if task in (cloze, closers) else task(LENGTH)
    again = task(code, LENGTH) if task in (cloze, closers) else task(LENGTH)

    def as_bytes(questions: list[Question]) -> list[tuple[bytes, ...]]:
        return [(one.context.tobytes(), *(choice.tobytes() for choice in one.choices)) for one in questions]

    first = make_questions(measurement)
    assert as_bytes(make_questions(again)) == as_bytes(first)
    assert as_bytes(make_questions(again, budget=100)) == as_bytes(first)[:100], (
        "a smaller budget takes the first of them"
    )
    assert as_bytes(make_questions(again, seed=1)) != as_bytes(first)
    K = round(1 / measurement.chance)
    places = np.bincount([one.answer for one in first], minlength=K)
    assert len(places) == K
    assert (abs(places - 300 / K) < 4 * np.sqrt(300 / K)).all(), "every index is equally likely"
    for one in first:
        assert len({choice.tobytes() for choice in one.choices}) == K, "no two choices are the same"
        assert len({len(choice) for choice in one.choices}) == 1, "none is likelier because it is shorter"
        assert len(one.context) + len(one.choices[0]) <= LENGTH + 1


def test_an_untrained_model_is_within_noise_of_chance(code: TokenShards) -> None:
    params = MODEL.init(jax.random.key(1), jnp.zeros((1, 2), jnp.int32))["params"]
    for measurement in (cloze(code, LENGTH), closers(code, LENGTH), *(task(LENGTH) for task in SOLVERS)):
        values = measurement.run(MODEL, params, BYTES, jax.random.key(0), 256)
        accuracy, n, stderr = values["accuracy"]
        assert n == 256
        assert abs(accuracy - measurement.chance) < 4 * stderr, measurement.name
        assert values["bits_per_byte"][0] == pytest.approx(8, abs=0.5), "about one of 259 ids a byte"


def test_too_short_a_model_or_corpus_is_one_line(code: TokenShards, corpora: Path) -> None:
    with pytest.raises(InputError, match=r"copy\D*\d+\b.*sequence_length\D*16\b"):
        copy(16).run(MODEL, None, BYTES, jax.random.key(0), 10)
    with pytest.raises(InputError, match=r"closers.*'walk'\D*0\b.*'\]'"):
        closers(open_shards(corpora, "walk"), LENGTH)
    short = replace(code, validation=replace(code.validation, tokens=40))
    with pytest.raises(InputError, match=r"cloze.*code\.jsonl'\D*0\D*32\b"):
        cloze(short, LENGTH)


def test_cloze_draws_documents_in_proportion_to_their_size(
    code: TokenShards, make_questions, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = np.random.default_rng(0)
    long, short = generator.integers(100, 200, 10_000), generator.integers(200, 259, 132)
    monkeypatch.setattr("scaling.measurements.cloze.read_documents", lambda *_: [short, long])
    from_long = [(one.choices[one.answer] < 200).all() for one in make_questions(cloze(code, LENGTH), budget=200)]
    assert 0.93 < np.mean(from_long) < 1, "about 99 of 100 places"
    repeated = [np.full(100, 7), np.full(80, 7)]
    monkeypatch.setattr("scaling.measurements.cloze.read_documents", lambda *_: repeated)
    with pytest.raises(InputError, match=r"cloze.*code\.jsonl'"):
        make_questions(cloze(code, LENGTH))


def test_brackets_are_matched_and_a_wrong_one_discards_the_open_ones() -> None:
    assert match_brackets("f(a[1], {2})") == [(3, 5), (8, 10), (1, 11)]
    assert match_brackets("(a] b)") == [], "a closing bracket of the wrong kind discards the open ones"


def test_wrong_sums_are_sums_and_differ_in_one_digit(make_questions) -> None:
    assert one_digit_changes(120, 20, 198) == [[], [f"1{d}0" for d in "013456789"], [f"12{d}" for d in "123456789"]]
    assert one_digit_changes(15, 2, 18) == [[], ["10", "11", "12", "13", "14", "16", "17", "18"]]
    for question in make_questions(addition(LENGTH)):
        columns = zip(*(BYTES.decode(choice) for choice in question.choices), strict=True)
        assert sorted(len(set(column)) for column in columns)[-2:] == [1, 4], "all in the same place"


@pytest.mark.parametrize("digits", [1, 3])
def test_numbers_of_other_lengths_are_added_too(digits: int, make_questions) -> None:
    for question in make_questions(addition(LENGTH, digits)):
        assert BYTES.decode(question.choices[question.answer]) == total(context_text(question))
        assert re.search(rf"\n\d{{{digits}}}\+\d{{{digits}}}=$", context_text(question))


@pytest.mark.parametrize("wrong", ["", "right"])
def test_choices_that_are_empty_or_equal_are_refused(wrong: str) -> None:
    def make_question(tokenizer: ByteTokenizer, generator: np.random.Generator) -> Question:
        return multiple_choice.question_from_text(tokenizer, "which? ", "right", [wrong], generator)

    measurement = multiple_choice.multiple_choice("mine", 2, make_question, LENGTH)
    with pytest.raises(InputError, match="mine: question 0 "):
        measurement.run(MODEL, None, BYTES, jax.random.key(0), 3)
