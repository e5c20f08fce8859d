"""`scaling data ...` as a user meets it."""

from __future__ import annotations

import errno
import importlib.util
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from scaling.commands.data import data_list, data_prepare, data_vocabulary
from scaling.data.corpora import SPLITS, parse_corpus
from scaling.data.prepare import mixture_source_hash, prepare
from scaling.data.shards import TokenShards, open_shards
from scaling.data.tokenizer import ByteTokenizer, SentencePieceTokenizer, load_tokenizer, train_sentencepiece
from tests.conftest import in_process, scaling

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


def stamps(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def is_found(*arguments: object, cwd: Path) -> bool:
    """Whether the verb leaves all that was prepared as it is, and starts no process to see that."""
    before = stamps(cwd / "out")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess, "run", None)
        done = in_process(*arguments, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return len(before) > 0 and stamps(cwd / "out") == before


def documents(split: np.ndarray) -> list[str]:
    parts = np.split(split, np.flatnonzero(split == 1) + 1)
    assert len(parts[-1]) == 0
    return [ByteTokenizer().decode(part) for part in parts[:-1]]


def test_prepare_and_list(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, facts, listed = str(tmp_path / "out"), tmp_path / "facts.json", tmp_path / "list.json"
    data_prepare(name_of(source), directory=out, backend="plain", json=facts)
    fingerprint = json.loads(facts.read_text())["fingerprint"]
    assert fingerprint in capsys.readouterr().out
    assert open_shards(out, name_of(source)).fingerprint == fingerprint
    before = stamps(tmp_path / "out")
    data_prepare(name_of(source), directory=out, backend="plain")
    assert fingerprint in capsys.readouterr().out
    assert stamps(tmp_path / "out") == before
    data_list(out, json=listed)
    shown = capsys.readouterr().out
    assert fingerprint in shown
    assert "stdlib" in shown
    assert [meta["fingerprint"] for meta in json.loads(listed.read_text())] == [fingerprint]


def test_verify_reads_all_and_names_a_damaged_file(source: Path, tmp_path: Path) -> None:
    prepared = prepare(name_of(source), tmp_path / "out" / "corpora", backend="plain")
    done = in_process("data", "verify", name_of(source), "--json", "v.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    facts = json.loads((tmp_path / "v.json").read_text())
    assert facts["bytes"] == sum(path.stat().st_size for path in prepared.folder.iterdir())
    assert facts["fingerprint"] == prepared.fingerprint
    (prepared.folder / "train-00000.bin").write_bytes(bytes(prepared.meta["splits"]["train"]["tokens"] * 2))
    done = in_process("data", "verify", name_of(source), cwd=tmp_path)
    assert done.returncode == 2
    assert re.search(r"train-00000\.bin.*scaling data prepare", done.stderr)
    assert len(done.stderr.strip().splitlines()) == 1


def test_names_are_printed_as_they_are(source: Path, tmp_path: Path) -> None:
    (tmp_path / "x[").mkdir()
    source.rename(tmp_path / "x[" / "a]:m:.txt")
    name = "text:x[/a]:m:.txt?document=line"
    for verb in (("prepare", name, "--backend", "plain"), ("verify", name)):
        done = in_process("data", *verb, cwd=tmp_path)
        assert f"{name}: " in done.stdout, done.stderr


def test_list_leaves_out_what_a_killed_prepare_left(source: Path, tmp_path: Path) -> None:
    prepared = prepare(name_of(source), tmp_path / "out", backend="plain")
    for name in (".writing-abc", ".replaced-byte"):
        shutil.copytree(prepared.folder, prepared.folder.with_name(name))
    data_list(str(tmp_path / "out"), json=tmp_path / "list.json")
    assert len(json.loads((tmp_path / "list.json").read_text())) == 1


def test_vocabulary_is_measured_on_validation_and_its_command_works(source: Path, tmp_path: Path) -> None:
    done = in_process(
        "data", "vocabulary", name_of(source), "--size", 320, "--path", "v/m.model", "--json", "v.json", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    facts = json.loads((tmp_path / "v.json").read_text())
    model = load_tokenizer(str(tmp_path / "v" / "m.model"))
    texts = list(parse_corpus(name_of(source)).documents("validation"))
    tokens = sum(len(model.encode(text)) for text in texts)
    ratio = sum(len(text.encode()) for text in texts) / tokens
    assert (facts["size"], facts["tokens"]) == (320, tokens)
    assert facts["bytes_per_token"] == ratio > 1.5
    assert re.search(rf"v/m\.model.*\b320\b.*\b{ratio:.3f}\b", done.stdout)
    assert facts["command"] in done.stdout
    command = shlex.split(facts["command"])
    assert command[:4] == ["scaling", "data", "prepare", name_of(source)]
    prepared = in_process(*command[1:], "--backend", "plain", cwd=tmp_path)
    assert prepared.returncode == 0, prepared.stderr
    assert open_shards(tmp_path / "out" / "corpora", name_of(source), model.name).vocab_size == 320


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
    ("arguments", "named"),
    [
        (("stdlb",), r"'stdlb'.*\bstdlib\b"),
        (("text:a.txt", "--size", "300"), r"\b300\b"),
        (("text:a.txt?document=line", "--size", "100000"), r"\b100000\b"),
        (("text:a.txt?document=line", "--documents", "0"), r"documents\D*0\b"),
        (("text:a.txt?document=line", "--size", "-1"), r"-1\b"),
        (
            ("text:a.txt?document=line", "--size", "300", "--path", "a.txt/m.model"),
            rf"a\.txt/m\.model.*{os.strerror(errno.EEXIST)}",
        ),
        (("jsonl:bad.jsonl", "--size", "300"), r"bad\.jsonl\D*401\b.*'text'"),
        (("mixture:m",), "'mixture:m'"),
        (("seqio:t?module=m",), r"'seqio:t\?module=m'"),
    ],
)
def test_a_vocabulary_that_cannot_be_is_one_line(
    source: Path, tmp_path: Path, arguments: tuple[str, ...], named: str
) -> None:
    rows = [json.dumps({"text": text}) for text in TEXTS]
    (tmp_path / "bad.jsonl").write_text("\n".join([*rows, '{"txt": "b"}']))
    done = in_process("data", "vocabulary", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert re.search(named, done.stderr)
    assert len(done.stderr.strip().splitlines()) == 1
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.txt", "bad.jsonl"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("m", "walk=1"), r"'m'.*train_tokens\D*0\b"),
        (("m", "--train-tokens", "9"), "'m'.*CORPUS=RATE"),
        (("m", "walk", "--train-tokens", "9"), "'m'.*'walk'.*CORPUS=RATE"),
        (("m", "wlak=1", "--train-tokens", "9"), r"'wlak'.*\bwalk\b"),
        (("m", "walk=0", "--train-tokens", "9"), r"'m'.*'walk'\D*0\.0\b"),
        (("m", "walk=inf", "--train-tokens", "9"), r"'m'.*\bwalk.*\binf\b"),
        (("m", "walk=1", "walk=2", "--train-tokens", "9"), "'m'.*'walk'"),
        (("m", "mixture:n=1", "--train-tokens", "9"), "'m'.*'mixture:n'"),
    ],
)
def test_a_wrong_mixture_is_one_line(tmp_path: Path, arguments: tuple[str, ...], named: str) -> None:
    done = in_process("data", "mixture", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert re.search(named, done.stderr)
    assert len(done.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_mixture_that_is_not_prepared_names_its_command(tmp_path: Path) -> None:
    done = in_process("data", "prepare", "mixture:m", cwd=tmp_path)
    assert done.returncode == 2
    assert re.search("'mixture:m'.*scaling data mixture m .*--train-tokens", done.stderr)


def test_a_mixture_is_told_from_others_by_rates_sizes_and_sources(source: Path) -> None:
    """Hence written again when one of them has changed."""
    rates = {name_of(source): 3.0, "walk": 1.0}
    known = [
        mixture_source_hash(rates, 40_000, 2000),
        mixture_source_hash(rates, 40_001, 2000),
        mixture_source_hash(rates, 40_000, 2001),
        mixture_source_hash(rates | {"walk": 2.0}, 40_000, 2000),
    ]
    assert mixture_source_hash(dict(rates), 40_000, 2000) == known[0]
    source.write_text("another line\n")
    known.append(mixture_source_hash(rates, 40_000, 2000))
    assert len(set(known)) == len(known)


@needs_seqio
@pytest.mark.slow
def test_a_mixture_is_written_once_and_found_by_prepare(source: Path, tmp_path: Path) -> None:
    """By a seqio that reads from the user's own folder, and is not imported again for what is there."""
    parts = (f"{name_of(source.relative_to(tmp_path))}=3", "walk?tokens=4096=1")
    command = ("data", "mixture", "m", *parts, "--train-tokens", 40_000, "--validation-tokens", 2000)
    done = scaling(*command, "--json", "m.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "tensorflow" not in (done.stdout + done.stderr).lower()
    tokens = open_shards(tmp_path / "out" / "corpora", "mixture:m")
    assert tokens.train.tokens >= 40_000
    assert tokens.validation.tokens >= 2000
    assert json.loads((tmp_path / "m.json").read_text())["fingerprint"] == tokens.fingerprint
    ours = [text in set(TEXTS) for text in documents(np.concatenate(tokens.train.shards))]
    assert 0.6 < np.mean(ours) < 0.9
    assert is_found(*command, cwd=tmp_path)
    assert is_found("data", "prepare", "mixture:m", cwd=tmp_path)


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
    OWN("train_only"): r"validation.*\btrain\b",
    OWN("more_ids"): "'targets'.*'byte'.*--vocabulary",
    OWN("backward"): r"my_package\.my_tasks .*\bbackwards\b",
    OWN("backwards") + "&feature=target": r"'target'.*\btargets\b",
    "seqio:backwards?module=broken": "'broken'.*ZeroDivisionError",
}
SCRIPT = """
import json, sys
from scaling.data import seqio_corpora
from scaling.errors import InputError
said = {}
for name, vocabulary in json.loads(sys.argv[1]):
    try:
        seqio_corpora.app.cli(args=["prepare", name, "--vocabulary", vocabulary])
    except InputError as error:
        said[f"{name} {vocabulary}"] = str(error)
json.dump(said, open("said.json", "w"))
"""


@dataclass(frozen=True)
class Own:
    """What became of a user's tasks: where they were prepared, the models, the refusals by corpus and vocabulary."""

    place: Path
    model: SentencePieceTokenizer
    refusals: dict[str, str]

    def tokens(self, task: str, vocabulary: str = "byte") -> TokenShards:
        return open_shards(self.place / "out" / "corpora", OWN(task), vocabulary)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Own:
    """All of a user's tasks through `python -m scaling.data.seqio_corpora`, as the verb calls it, in one process: to
    import seqio
    costs seconds."""
    place = with_package(tmp_path_factory.mktemp("own"))
    (place / "broken.py").write_text("1 / 0")
    model = train_sentencepiece(TEXTS, 300, place / "m.model")
    other = train_sentencepiece(TEXTS[::2], 300, place / "other.model")
    assert other.slug.split("-")[1] != model.slug.split("-")[1]
    wanted = [*((OWN(name), "byte") for name in ("backwards", "no_eos", "both")), (OWN("pieces"), "m.model")]
    wanted += [(name, "byte") for name in REFUSED] + [(OWN("pieces"), "other.model")]
    quiet = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    command = [sys.executable, "-c", SCRIPT, json.dumps(wanted)]
    done = subprocess.run(command, cwd=place, env=quiet, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return Own(place, load_tokenizer(str(place / "m.model")), json.loads((place / "said.json").read_text()))


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
        assert is_found("data", "prepare", OWN(task), cwd=own.place)


@needs_seqio
@pytest.mark.slow
def test_the_users_own_mixture_becomes_shards_to_train_on_where_its_module_is_not(own: Own, tmp_path: Path) -> None:
    assert is_found("data", "prepare", OWN("both"), cwd=own.place)
    mixed = documents(own.tokens("both").train.shards[0])
    assert [word for word in mixed if word.endswith("+")] == WORDS["train"]["+"]
    assert [word for word in mixed if word.endswith("-")] == WORDS["train"]["-"][: len(mixed) - 6]
    assert 6 < len(mixed) < 12

    shutil.copytree(own.place / "out", tmp_path / "out")
    flags = ("--data.sequence-length", 8, "--data.batch-sequences", 2, "--measure.validation-tokens", 16)
    model = ("--model.width", 16, "--model.depth", 1, "--model.heads", 1)
    short = ("--tokens", 64, "--schedule.warmup-tokens", 16, "--folder", "run")
    done = scaling("train", "--data.corpus", OWN("both"), *flags, *model, *short, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((tmp_path / "run" / "result.json").read_text())["status"] == "done"


@needs_seqio
@pytest.mark.slow
def test_a_task_in_pieces_is_prepared_with_its_own_model_alone(own: Own) -> None:
    stream = own.tokens("pieces", own.model.name).train.shards[0]
    parts = np.split(stream, np.flatnonzero(stream == own.model.eos_id) + 1)
    assert [own.model.decode(part) for part in parts[:-1]] == [f"-train{i}"[::-1] for i in range(6)]
    assert re.search("'targets'.*'other.model'", own.refusals[f"{OWN('pieces')} other.model"])


@needs_seqio
@pytest.mark.slow
def test_a_task_that_cannot_be_prepared_is_one_line_and_leaves_nothing(own: Own) -> None:
    """The verb prints this line and ends with 2: below, on a full disk."""
    assert set(own.refusals) == {f"{name} byte" for name in REFUSED} | {f"{OWN('pieces')} other.model"}
    for name, named in REFUSED.items():
        said = own.refusals[f"{name} byte"]
        assert name in said
        assert re.search(named, said.replace(name, "")), said
    assert not [said for said in own.refusals.values() if "\n" in said]
    prepared = {path.parent.name for path in own.place.glob("out/corpora/*/[!.]*")}
    assert len(prepared) == 4, "backwards, no_eos, both and pieces"


@pytest.mark.parametrize(
    ("corpus", "named"),
    [
        ("seqio:t", "'seqio:t'.*module=NAME"),
        ("seqio:t?module=my_package.other", r" 'my_package\.other'"),
        ("seqio:t?module=nowhere.other", r" 'nowhere\.other'"),
        ("seqio:t?module=my_package.my_tasks.more", r" 'my_package\.my_tasks\.more'"),
    ],
)
def test_a_task_of_no_module_is_told_at_once(
    place: Path, corpus: str, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "run", None)
    done = in_process("data", "prepare", corpus, cwd=place)
    assert done.returncode == 2
    assert re.search(named, done.stderr)
    assert "my_package" not in sys.modules
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("backend", ["plain", pytest.param("seqio", marks=[needs_seqio, pytest.mark.slow])])
def test_a_full_disk_is_one_line_and_leaves_nothing_half(tmp_path: Path, backend: str) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("cannot mount a small file system here (needs root on Linux)")
    try:
        first = in_process(
            "data", "prepare", "walk?tokens=1024", "--directory", disk, "--backend", "plain", cwd=tmp_path
        )
        assert first.returncode == 0, first.stderr
        before = sorted(path for path in disk.rglob("*") if path.is_file())
        done = in_process("data", "prepare", "walk", "--directory", disk, "--backend", backend, cwd=tmp_path)
        assert done.returncode == 2, done.stderr[-2000:]
        assert re.search(rf"{disk}/walk/byte.*--directory", done.stderr)
        assert len(done.stderr.strip().splitlines()) == 1
        after = sorted(path for path in disk.rglob("*") if path.is_file())
        assert after == sorted([*before, disk / "walk" / ".lock"])
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        done = in_process("data", "prepare", "walk", "--directory", disk, "--backend", "plain", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert open_shards(disk, "walk").train.tokens > 0
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
