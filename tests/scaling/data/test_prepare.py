"""Preparing a corpus: the shards hold exactly its documents, are written once, and never partially."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from scaling.data.corpora import SPLITS, parse_corpus
from scaling.data.prepare import prepare, write_shards
from scaling.data.shards import open_shards
from scaling.data.tokenizer import ByteTokenizer, train_sentencepiece
from scaling.errors import InputError
from scaling.files import lock_file

TEXTS = [f"line {i} é😀 \x00 ▁\n" for i in range(400)]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "a.txt"
    path.write_text("".join(TEXTS))
    return path


def name_of(path: Path) -> str:
    return f"text:{path}?document=line"


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("kind", ["byte", "sentencepiece"])
def test_shards_hold_every_document_followed_by_its_end(source: Path, tmp_path: Path, kind: str) -> None:
    model = "byte" if kind == "byte" else train_sentencepiece(TEXTS, 300, tmp_path / "m.model").name
    prepared = prepare(name_of(source), tmp_path / "out", model, backend="plain")
    tokens = open_shards(tmp_path / "out", name_of(source), model)
    tokenizer = ByteTokenizer() if kind == "byte" else train_sentencepiece(TEXTS, 300, tmp_path / "again.model")
    for split in SPLITS:
        stream = np.concatenate(getattr(tokens, split).shards)
        ends = np.flatnonzero(stream == tokens.eos_id)
        documents = [tokenizer.decode(part[part != tokens.eos_id]) for part in np.split(stream, ends + 1)[:-1]]
        assert documents == list(parse_corpus(name_of(source)).documents(split))
        facts = prepared.meta["splits"][split]
        assert facts["documents"] == len(documents)
        assert facts["bytes"] == sum(len(text.encode()) for text in documents) == tokens.bytes_per_token[stream].sum()
        assert facts["tokens"] == len(stream) == len(documents) + len(stream[stream != tokens.eos_id])
        assert facts["max_id"] == stream.max()
    assert tokens.fingerprint == prepared.fingerprint
    assert len(tokens.bytes_per_token) == tokens.vocab_size == tokenizer.size


def test_a_second_prepare_writes_nothing(source: Path, tmp_path: Path) -> None:
    first = prepare(name_of(source), tmp_path / "out", backend="plain")
    stamps = {path: path.stat().st_mtime_ns for path in first.folder.iterdir()}
    second = prepare(name_of(source), tmp_path / "out", backend="plain")
    assert second.seconds == 0
    assert second.meta == first.meta
    assert {path: path.stat().st_mtime_ns for path in second.folder.iterdir()} == stamps


def test_a_changed_source_is_prepared_again(source: Path, tmp_path: Path) -> None:
    first = prepare(name_of(source), tmp_path / "out", backend="plain")
    old = open_shards(tmp_path / "out", name_of(source))
    before = old.train.shards[0].copy()
    source.write_text("".join(TEXTS[::-1]))
    second = prepare(name_of(source), tmp_path / "out", backend="plain")
    assert second.folder == first.folder
    assert second.fingerprint != first.fingerprint
    assert second.meta["splits"]["train"]["tokens"] == first.meta["splits"]["train"]["tokens"]
    assert (old.train.shards[0] == before).all()
    assert [path.name for path in first.folder.parent.iterdir() if path.name != ".lock"] == ["byte"]


def test_the_fingerprint_depends_on_contents_alone(source: Path, tmp_path: Path) -> None:
    first = prepare(name_of(source), tmp_path / "out", backend="plain", shard_tokens=100)
    os.utime(source, ns=(1, 1))
    second = prepare(name_of(source), tmp_path / "out", backend="plain", shard_tokens=1000)
    assert second.meta["source"] != first.meta["source"]
    assert second.fingerprint == first.fingerprint


def test_a_tokenizer_with_many_ids_takes_four_bytes_a_token(source: Path, tmp_path: Path) -> None:
    class Wide(ByteTokenizer):
        bytes_per_token = np.ones(70_000, np.int64)  # pyrefly: ignore

    corpus = parse_corpus(name_of(source))
    folder = tmp_path / corpus.slug / "byte"
    ids = np.array([69_999, 65_536, 1])
    write_shards(folder, corpus, Wide(size=70_000), {"train": [ids], "validation": [ids]})
    tokens = open_shards(tmp_path, corpus.name)
    assert tokens.train.shards[0].tolist() == ids.tolist()
    assert json.loads((folder / "meta.json").read_text())["dtype"] == "<u4"


@pytest.mark.parametrize("worst", [259, 70_000, -1])
def test_a_token_out_of_vocabulary_names_id_size_and_document(source: Path, tmp_path: Path, worst: int) -> None:
    corpus = parse_corpus(name_of(source))
    documents = [np.array([5, 1]), np.array([5, worst, 1])]
    message = rf"train\D*1\D*{worst}\b.*'byte'.*\b259\b"
    with pytest.raises(InputError, match=message):
        write_shards(tmp_path / "c" / "byte", corpus, ByteTokenizer(), {"train": documents, "validation": documents})
    assert [path.name for path in (tmp_path / "c").iterdir()] == [".lock"]


@pytest.mark.parametrize("content", ["", "only one document\n"])
def test_a_split_without_documents_is_an_empty_corpus(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.txt").write_text(content)
    with pytest.raises(InputError, match=r"'text:.*a\.txt'.*\btrain\b"):
        prepare(f"text:{tmp_path}/a.txt", tmp_path / "out", backend="plain")
    assert not list(tmp_path.glob("out/*/[!.]*"))


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("text:one.txt", r"'text:one\.txt'.*\b1 document;.*text:one\.txt\?document=line"),
        ("text:empty.txt", r"\bno document\b"),
        ("jsonl:equal.jsonl", r"\b3 documents\b.*equal"),
        ("jsonl:bad.jsonl?skip_bad=true", r"\b2\b.*bad\.jsonl, line 1: .*'text'"),
    ],
)
def test_too_few_documents_are_counted(tmp_path: Path, name: str, named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    contents = {
        "one.txt": "one\nparagraph\n",
        "empty.txt": "",
        "equal.jsonl": '{"text": "a"}\n' * 3,
        "bad.jsonl": "{}\n{}\n",
    }
    for file, content in contents.items():
        Path(file).write_text(content)
    with pytest.raises(InputError, match=named):
        prepare(name, "out", backend="plain")


def test_left_out_documents_are_counted_and_named_in_meta(tmp_path: Path) -> None:
    rows = [json.dumps({"text": text}) for text in TEXTS]
    (tmp_path / "good.jsonl").write_text("\n".join(rows))
    (tmp_path / "bad.jsonl").write_text("\n".join([*rows, *["{}"] * 20]))
    good = prepare(f"jsonl:{tmp_path}/good.jsonl", tmp_path, backend="plain")
    bad = prepare(f"jsonl:{tmp_path}/bad.jsonl?skip_bad=true", tmp_path, backend="plain")
    assert bad.fingerprint == good.fingerprint
    assert bad.meta["skipped_documents"] == 20
    assert [reason.split(":")[0] for reason in bad.meta["skipped_first"]][:2] == [
        f"{tmp_path}/bad.jsonl, line {line}" for line in (401, 402)
    ]


def test_a_killed_prepare_leaves_no_corpus_and_the_next_one_cleans_up(source: Path, tmp_path: Path) -> None:
    script = """if True:
        import os, signal, sys
        import numpy as np
        import scaling.data.prepare as p
        from scaling.data.corpora import parse_corpus
        from scaling.data.tokenizer import ByteTokenizer
        def killed_midway():
            yield np.full(1 << 20, 7)
            os.kill(os.getpid(), signal.SIGKILL)
        corpus = parse_corpus(sys.argv[1])
        p.write_shards(p.shards_folder(sys.argv[2], corpus.name, "byte"), corpus, ByteTokenizer(),
                       {"train": killed_midway(), "validation": killed_midway()})"""
    name, out = name_of(source), tmp_path / "out"
    killed = subprocess.run([sys.executable, "-c", script, name, str(out)], check=False)
    assert killed.returncode == -signal.SIGKILL
    leftovers = list(out.glob("*/.writing-*/train-00000.bin"))
    assert len(leftovers) == 1
    with pytest.raises(InputError, match="scaling data prepare"):
        open_shards(out, name)
    prepare(name, out, backend="plain")
    assert not list(out.glob("*/.writing-*"))
    assert open_shards(out, name).train.documents > 300


def test_leftovers_of_killed_writers_go_unless_one_is_writing(source: Path, tmp_path: Path) -> None:
    prepared = prepare(name_of(source), tmp_path / "out", backend="plain")
    leftovers = [prepared.folder.with_name(name) for name in (".writing-abc", ".replaced-byte")]
    for leftover in leftovers:
        shutil.copytree(prepared.folder, leftover)
    with lock_file(prepared.folder.parent / ".lock"):
        prepare(name_of(source), tmp_path / "out", backend="plain")
        assert all(path.is_dir() for path in leftovers)
    prepare(name_of(source), tmp_path / "out", backend="plain")
    assert not any(path.exists() for path in leftovers)


def test_a_second_writer_keeps_the_shards_of_the_first(source: Path, tmp_path: Path) -> None:
    prepared = prepare(name_of(source), tmp_path / "out", backend="plain")
    before = files(prepared.folder)

    def never_read() -> Iterator[np.ndarray]:
        raise AssertionError("the second writer read its documents")
        yield np.array([])

    documents = {"train": never_read(), "validation": never_read()}
    write_shards(prepared.folder, parse_corpus(name_of(source)), ByteTokenizer(), documents)  # pyrefly: ignore
    assert files(prepared.folder) == before
