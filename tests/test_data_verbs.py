"""`scaling data ...` as a user meets it."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from conftest import in_process, scaling

from scaling.corpora import SPLITS, parse_corpus
from scaling.data_verbs import data_list, data_prepare, data_vocabulary
from scaling.prepare import mixture_source
from scaling.tokens import TokenSet, open_tokens
from scaling.vocabulary import ByteVocabulary, SentencePieceVocabulary, load_vocabulary, train_sentencepiece

TEXTS = [f"line {i} é😀 \x00 ▁\n" for i in range(400)]

MODULE = '''
import functools
import os
import seqio
import tensorflow as tf

def numbers(split, shuffle_files, seed=None, *, sign):
    """Words whose tokens the preprocessor below makes: no text that our own readers would have read."""
    size = {"train": 6, "validation": 2}[split]
    return tf.data.Dataset.from_tensor_slices({"word": [f"{sign}{split}{i}" for i in range(size)]})

def reverse(dataset):
    def one(example):
        return {"targets": tf.strings.reduce_join(tf.reverse(tf.strings.bytes_split(example["word"]), [0]))}

    return dataset.map(one)

def add(name, sign, preprocessors, splits=("train", "validation"), vocabulary=None):
    seqio.TaskRegistry.add(
        name,
        source=seqio.FunctionDataSource(functools.partial(numbers, sign=sign), splits=splits),
        preprocessors=preprocessors,
        output_features={"targets": seqio.Feature(vocabulary or seqio.ByteVocabulary(), add_eos=True)},
    )

whole = [reverse, seqio.preprocessors.tokenize, seqio.preprocessors.append_eos]
add("backwards", "+", whole)
add("no_eos", "-", whole[:2])
add("train_only", "-", whole, splits=("train",))
add("more_ids", "-", whole, vocabulary=seqio.ByteVocabulary(extra_ids=7))
if os.path.exists("m.model"):
    add("pieces", "-", whole, vocabulary=seqio.SentencePieceVocabulary("m.model"))
seqio.MixtureRegistry.add("both", [("backwards", 3.0), ("no_eos", 1.0)])
'''

needs_seqio = pytest.mark.skipif(importlib.util.find_spec("seqio") is None, reason="seqio is not installed")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "a.txt"
    path.write_text("".join(TEXTS))
    return path


def name_of(path: Path) -> str:
    return f"text:{path}?document=line"


def documents(split: np.ndarray) -> list[str]:
    parts = np.split(split, np.flatnonzero(split == 1) + 1)
    assert len(parts[-1]) == 0
    return [ByteVocabulary().decode(part) for part in parts[:-1]]


def test_prepare_and_list(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, facts, listed = str(tmp_path / "out"), tmp_path / "facts.json", tmp_path / "list.json"
    data_prepare(name_of(source), directory=out, road="plain", json=facts)
    assert "written in" in capsys.readouterr().out
    data_prepare(name_of(source), directory=out, road="plain")
    assert "already there" in capsys.readouterr().out
    data_list(out, json=listed)
    shown = capsys.readouterr().out
    fingerprint = json.loads(facts.read_text())["fingerprint"]
    assert fingerprint in shown
    assert "stdlib" in shown
    assert [meta["fingerprint"] for meta in json.loads(listed.read_text())] == [fingerprint]


def test_vocabulary_is_measured_on_validation_and_its_command_works(source: Path, tmp_path: Path) -> None:
    done = scaling(
        "data", "vocabulary", name_of(source), "--size", 320, "--path", "v/m.model", "--json", "v.json", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    facts = json.loads((tmp_path / "v.json").read_text())
    model = load_vocabulary(str(tmp_path / "v" / "m.model"))
    texts = list(parse_corpus(name_of(source)).documents("validation"))
    tokens = sum(len(model.encode(text)) for text in texts)
    ratio = sum(len(text.encode()) for text in texts) / tokens
    assert (facts["size"], facts["tokens"]) == (320, tokens)
    assert facts["bytes_per_token"] == ratio > 1.5
    assert f"v/m.model: 320 ids, {ratio:.3f} bytes per token" in done.stdout
    command = shlex.split(done.stdout.splitlines()[-1].removeprefix("used by: "))
    assert command[:4] == ["scaling", "data", "prepare", name_of(source)]
    prepared = scaling(*command[1:], "--road", "plain", cwd=tmp_path)
    assert prepared.returncode == 0, prepared.stderr
    assert open_tokens(tmp_path / "out" / "corpora", name_of(source), model.name).vocab_size == 320


def test_vocabulary_is_trained_on_the_training_split_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("".join(f"{word}{i}\n" for i in range(500) for word in ("alpha ", "beta ")))
    corpus = parse_corpus("text:a.txt?document=line")
    data_vocabulary(corpus.name, size=300, path=Path("split.model"))
    train_sentencepiece(corpus.documents("train"), 300, "train.model")
    assert Path("split.model").read_bytes() == Path("train.model").read_bytes()
    data_vocabulary(corpus.name, size=300, path=Path("first.model"), documents=200)
    train_sentencepiece(itertools.islice(corpus.documents("train"), 200), 300, "first200.model")
    assert Path("first.model").read_bytes() == Path("first200.model").read_bytes() != Path("train.model").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("stdlb",), "unknown corpus 'stdlb'"),
        (("text:a.txt", "--size", "300"), "vocabulary of 300 ids could not be trained: no text to train it on"),
        (("text:a.txt?document=line", "--size", "100000"), "vocabulary of 100000 ids could not be trained"),
        (("text:a.txt?document=line", "--documents", "0"), "documents = 0: must be 1 or more"),
        (("text:a.txt?document=line", "--size", "-1"), "vocabulary of -1 ids could not be trained"),
        (
            ("text:a.txt?document=line", "--size", "300", "--path", "a.txt/m.model"),
            "cannot be written (File exists: a.txt)",
        ),
        (("jsonl:bad.jsonl", "--size", "300"), "bad.jsonl, line 401: no field 'text'"),
        (("mixture:m",), "mixture:m"),
        (("seqio:t?module=m",), "its text is tokens already"),
    ],
)
def test_a_vocabulary_that_cannot_be_is_one_line(
    source: Path, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    rows = [json.dumps({"text": text}) for text in TEXTS]
    (tmp_path / "bad.jsonl").write_text("\n".join([*rows, '{"txt": "b"}']))
    done = in_process("data", "vocabulary", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.txt", "bad.jsonl"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("m", "walk=1"), "train_tokens = 0: must be at least 1"),
        (("m", "--train-tokens", "9"), "names no corpus"),
        (("m", "walk", "--train-tokens", "9"), "'walk': must be CORPUS=RATE"),
        (("m", "wlak=1", "--train-tokens", "9"), "unknown corpus 'wlak'; did you mean walk?"),
        (("m", "walk=0", "--train-tokens", "9"), "rate of 'walk' is 0.0, must be more than 0"),
        (("m", "walk=inf", "--train-tokens", "9"), "rate of 'walk' is inf"),
        (("m", "walk=1", "walk=2", "--train-tokens", "9"), "'walk' is named twice"),
        (("m", "mixture:n=1", "--train-tokens", "9"), "mixed or tokenized already"),
    ],
)
def test_a_wrong_mixture_is_one_line(tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    done = in_process("data", "mixture", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_mixture_that_is_not_prepared_names_its_command(tmp_path: Path) -> None:
    done = scaling("data", "prepare", "mixture:m", cwd=tmp_path)
    assert done.returncode == 2
    assert "scaling data mixture m CORPUS=RATE ... --train-tokens N" in done.stderr


def test_a_mixture_is_told_from_others_by_rates_sizes_and_sources(source: Path) -> None:
    """Hence written again when one of them has changed, and else not even seqio is imported."""
    rates = {name_of(source): 3.0, "walk": 1.0}
    known = [
        mixture_source(rates, 40_000, 2000),
        mixture_source(rates, 40_001, 2000),
        mixture_source(rates, 40_000, 2001),
        mixture_source(rates | {"walk": 2.0}, 40_000, 2000),
    ]
    assert mixture_source(dict(rates), 40_000, 2000) == known[0]
    source.write_text("another line\n")
    known.append(mixture_source(rates, 40_000, 2000))
    assert len(set(known)) == len(known)


@needs_seqio
@pytest.mark.slow
def test_a_mixture_is_written_once_and_found_by_prepare(source: Path, tmp_path: Path) -> None:
    command = ("data", "mixture", "m", f"{name_of(source)}=3", "walk?tokens=4096=1", "--train-tokens", 40_000)
    done = scaling(*command, "--validation-tokens", 2000, "--json", "m.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "tensorflow" not in (done.stdout + done.stderr).lower()
    tokens = open_tokens(tmp_path / "out" / "corpora", "mixture:m")
    assert tokens.train.tokens >= 40_000
    assert tokens.validation.tokens >= 2000
    assert json.loads((tmp_path / "m.json").read_text())["fingerprint"] == tokens.fingerprint
    ours = [text in set(TEXTS) for text in documents(np.concatenate(tokens.train.shards))]
    assert 0.6 < np.mean(ours) < 0.9
    again = scaling(*command, "--validation-tokens", 2000, cwd=tmp_path)
    assert "already there" in again.stdout
    assert "already there" in scaling("data", "prepare", "mixture:m", cwd=tmp_path).stdout


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder where a user stands, with a package of tasks."""
    return with_package(tmp_path)


def with_package(folder: Path) -> Path:
    (folder / "my_package").mkdir()
    (folder / "my_package" / "__init__.py").write_text("")
    (folder / "my_package" / "my_tasks.py").write_text(MODULE)
    return folder


OWN = "seqio:{}?module=my_package.my_tasks".format
REFUSED = {
    OWN("train_only"): "has no validation split (both are needed); it has train",
    OWN("more_ids"): "which is not the vocabulary 'byte'",
    OWN("backward"): "registers no such Task or Mixture; did you mean backwards?",
    OWN("backwards") + "&feature=target": "no feature 'target'; did you mean targets?",
    "seqio:backwards?module=broken": "module 'broken' cannot be imported: ZeroDivisionError",
}
SCRIPT = """
import json, sys
from scaling import tasks
from scaling.strict import InputError
said = {}
for name, vocabulary in json.loads(sys.argv[1]):
    try:
        tasks.app.cli(args=["prepare", name, "--vocabulary", vocabulary])
    except InputError as error:
        said[f"{name} {vocabulary}"] = str(error)
json.dump(said, open("said.json", "w"))
"""


@dataclass(frozen=True)
class Own:
    """What became of a user's tasks: where they were prepared, the models, the refusals by corpus and vocabulary."""

    place: Path
    model: SentencePieceVocabulary
    refusals: dict[str, str]

    def tokens(self, task: str, vocabulary: str = "byte") -> TokenSet:
        return open_tokens(self.place / "out" / "corpora", OWN(task), vocabulary)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Own:
    """All of a user's tasks through `python -m scaling.tasks`, as the verb calls it, in one process: to import seqio
    costs seconds."""
    place = with_package(tmp_path_factory.mktemp("own"))
    (place / "broken.py").write_text("1 / 0")
    model = train_sentencepiece(TEXTS, 300, place / "m.model")
    other = train_sentencepiece(TEXTS[::2], 300, place / "other.model")
    assert other.slug.split("-")[1] != model.slug.split("-")[1]
    wanted = [(OWN("backwards"), "byte"), (OWN("no_eos"), "byte"), (OWN("pieces"), "m.model")]
    wanted += [(name, "byte") for name in REFUSED] + [(OWN("pieces"), "other.model")]
    quiet = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    command = [sys.executable, "-c", SCRIPT, json.dumps(wanted)]
    done = subprocess.run(command, cwd=place, env=quiet, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return Own(place, load_vocabulary(str(place / "m.model")), json.loads((place / "said.json").read_text()))


WORDS = {
    split: {sign: [f"{sign}{split}{i}"[::-1] for i in range(size)] for sign in "+-"}
    for split, size in (("train", 6), ("validation", 2))
}


@needs_seqio
@pytest.mark.slow
def test_the_users_own_tasks_become_shards(own: Own) -> None:
    for split in SPLITS:
        for task, sign in (("backwards", "+"), ("no_eos", "-")):
            assert documents(getattr(own.tokens(task), split).shards[0]) == WORDS[split][sign]
    for task in ("backwards", "no_eos"):
        assert "already there" in scaling("data", "prepare", OWN(task), cwd=own.place).stdout


@needs_seqio
@pytest.mark.slow
def test_the_users_own_mixture_becomes_shards_to_train_on_where_its_module_is_gone(place: Path) -> None:
    done = scaling("data", "prepare", OWN("both"), cwd=place)
    assert done.returncode == 0, done.stderr
    assert "already there" in scaling("data", "prepare", OWN("both"), cwd=place).stdout
    mixed = documents(open_tokens(place / "out" / "corpora", OWN("both")).train.shards[0])
    assert [word for word in mixed if word.endswith("+")] == WORDS["train"]["+"]
    assert [word for word in mixed if word.endswith("-")] == WORDS["train"]["-"][: len(mixed) - 6]
    assert 6 < len(mixed) < 12

    (place / "my_package" / "my_tasks.py").unlink()
    flags = ("--data.sequence-length", 8, "--data.batch-sequences", 2, "--measure.validation-tokens", 16)
    model = ("--model.width", 16, "--model.depth", 1, "--model.heads", 1)
    short = ("--tokens", 64, "--schedule.warmup-tokens", 16, "--folder", "run")
    done = scaling("train", "--data.corpus", OWN("both"), *flags, *model, *short, cwd=place)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((place / "run" / "result.json").read_text())["status"] == "done"


@needs_seqio
@pytest.mark.slow
def test_a_task_in_pieces_is_prepared_with_its_own_model_alone(own: Own) -> None:
    stream = own.tokens("pieces", own.model.name).train.shards[0]
    parts = np.split(stream, np.flatnonzero(stream == own.model.eos_id) + 1)
    assert [own.model.decode(part) for part in parts[:-1]] == [f"-train{i}"[::-1] for i in range(6)]
    assert "which is not the vocabulary 'other.model'" in own.refusals[f"{OWN('pieces')} other.model"]


@needs_seqio
@pytest.mark.slow
def test_a_task_that_cannot_be_prepared_is_one_line_and_leaves_nothing(own: Own) -> None:
    """The verb prints this line and ends with 2: below, on a full disk."""
    assert set(own.refusals) == {f"{name} byte" for name in REFUSED} | {f"{OWN('pieces')} other.model"}
    for name, words in REFUSED.items():
        assert words in own.refusals[f"{name} byte"]
    assert not [said for said in own.refusals.values() if "\n" in said]
    prepared = {path.parent.name for path in own.place.glob("out/corpora/*/[!.]*")}
    assert len(prepared) == 3, "backwards, no_eos and pieces"


@pytest.mark.parametrize(
    ("corpus", "words"),
    [
        ("seqio:t", "needs module=NAME"),
        ("seqio:t?module=my_package.other", "no module 'my_package.other' here"),
        ("seqio:t?module=nowhere.other", "no module 'nowhere.other' here"),
        ("seqio:t?module=my_package.my_tasks.more", "no module 'my_package.my_tasks.more' here"),
    ],
)
def test_a_task_of_no_module_is_told_at_once(place: Path, corpus: str, words: str) -> None:
    done = scaling("data", "prepare", corpus, cwd=place)
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("road", ["plain", pytest.param("seqio", marks=[needs_seqio, pytest.mark.slow])])
def test_a_full_disk_is_one_line_and_leaves_nothing_half(tmp_path: Path, road: str) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("cannot mount a small file system here (needs root on Linux)")
    try:
        first = scaling("data", "prepare", "walk?tokens=1024", "--directory", disk, "--road", "plain")
        assert first.returncode == 0, first.stderr
        before = sorted(path for path in disk.rglob("*") if path.is_file())
        done = scaling("data", "prepare", "walk", "--directory", disk, "--road", road)
        assert done.returncode == 2, done.stderr[-2000:]
        assert "no space left on its disk" in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
        after = sorted(path for path in disk.rglob("*") if path.is_file())
        assert after == sorted([*before, disk / "walk" / ".lock"])
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        assert scaling("data", "prepare", "walk", "--directory", disk, "--road", "plain").returncode == 0
        assert open_tokens(disk, "walk").train.tokens > 0
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
