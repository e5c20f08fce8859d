"""Corpora in the user's own files: text, JSONL, Parquet, Hugging Face datasets."""

import codecs
import gzip
import json
import re
from collections import Counter
from pathlib import Path

import pandas as pd
import pyarrow
import pytest

from scaling.data.corpora import SPLITS, parse_corpus
from scaling.data.corpus import split_documents
from scaling.data.file_corpora import HuggingFace, Jsonl, Parquet, Text
from scaling.errors import InputError

DOCUMENTS = [f"document {i}\nwith é, \x00 and  spaces \r\n" for i in range(300)]


def all_documents(corpus: Text | Jsonl | Parquet | HuggingFace) -> list[str]:
    return sorted(text for split in SPLITS for text in corpus.documents(split))


def write_jsonl(path: Path, field: str = "text") -> Path:
    path.write_text("\n".join(json.dumps({"id": i, field: text}) for i, text in enumerate(DOCUMENTS)) + "\n\n")
    return path


def test_equal_documents_are_in_the_same_split() -> None:
    documents = [f"text {i % 100}" for i in range(300)]
    train, validation = (list(split_documents(lambda: iter(documents), split)) for split in SPLITS)
    assert not set(train) & set(validation)
    assert Counter(train + validation) == Counter(documents)
    assert train == [text for text in documents if text in set(train)]
    assert len(set(validation)) > 0


def test_about_one_in_forty_is_held_out() -> None:
    validation = list(split_documents(lambda: (f"text {i}" for i in range(20_000)), "validation"))
    assert abs(len(validation) - 500) < 4 * 500**0.5


def test_two_documents_still_make_two_splits() -> None:
    train, validation = (list(split_documents(lambda: iter(["a", "b"]), split)) for split in SPLITS)
    assert sorted(train + validation) == ["a", "b"]
    assert len(train) == len(validation) == 1


@pytest.mark.parametrize("unit", ["line", "paragraph", "file"])
def test_documents_of_a_text_file_concatenate_to_the_file(tmp_path: Path, unit: str) -> None:
    text = "\n\nfirst\nstill first\n\n \t\nsecond \r\n\r\nthird\x0b\x85 same line\x00\n  \n\n\nno end"
    path = tmp_path / "a.txt"
    path.write_bytes(text.encode())
    parts = list(parse_corpus(f"text:{path}?document={unit}").read_documents())  # pyrefly: ignore
    assert "".join(parts) == text
    assert len(parts) == {"line": text.count("\n") + 1, "paragraph": 4, "file": 1}[unit]


def test_text_by_default_is_files_of_a_folder_or_paragraphs_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "b.txt").write_text("b\n\nb")
    (tmp_path / "a.txt").write_text("a\n\na")
    (tmp_path / "c.md").write_text("c")
    assert list(Text(str(tmp_path)).read_documents()) == ["a\n\na", "c", "b\n\nb"]
    assert list(Text(f"{tmp_path}/**/*.txt").read_documents()) == ["a\n\na", "b\n\nb"]
    assert list(Text(str(tmp_path / "a.txt")).read_documents()) == ["a\n\n", "a"]


def test_jsonl(tmp_path: Path) -> None:
    corpus = Jsonl(str(write_jsonl(tmp_path / "a.jsonl", "body")), field="body")
    assert all_documents(corpus) == sorted(DOCUMENTS)
    assert list(corpus.read_documents()) == DOCUMENTS


def test_parquet(tmp_path: Path) -> None:
    pd.DataFrame({"body": DOCUMENTS, "n": range(300)}).to_parquet(tmp_path / "a.parquet", row_group_size=64)
    corpus = Parquet(str(tmp_path), column="body")
    assert all_documents(corpus) == sorted(DOCUMENTS)
    assert list(corpus.read_documents()) == DOCUMENTS


def test_hugging_face_saved_to_disk(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    dataset = datasets.Dataset.from_dict({"body": DOCUMENTS})
    dataset.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": dataset, "test": dataset.select(range(7))}).save_to_disk(str(tmp_path / "dict"))
    assert all_documents(HuggingFace(str(tmp_path / "one"), column="body")) == sorted(DOCUMENTS)
    assert list(HuggingFace(str(tmp_path / "dict"), split="test", column="body").read_documents()) == DOCUMENTS[:7]
    with pytest.raises(InputError, match=r"'tset'.*\btest\b"):
        list(HuggingFace(str(tmp_path / "dict"), split="tset").read_documents())
    with pytest.raises(InputError, match=r"'bdy'.*\bbody\b"):
        list(HuggingFace(str(tmp_path / "one"), column="bdy").read_documents())


def test_hugging_face_loads_local_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "data").mkdir()
    write_jsonl(tmp_path / "data" / "train.jsonl")
    assert list(HuggingFace(str(tmp_path / "data")).read_documents()) == DOCUMENTS


def test_a_dataset_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=f"'hf:{tmp_path}/empty'") as error:
        list(HuggingFace(str(tmp_path / "empty")).read_documents())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["text", "jsonl", "parquet"])
def test_missing_file_names_the_nearest(tmp_path: Path, kind: str) -> None:
    (tmp_path / "notes.file").write_text("")
    with pytest.raises(InputError, match=r"nodes\.file.*\bnotes\.file\b"):
        list(parse_corpus(f"{kind}:{tmp_path}/nodes.file").documents("train"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "a"}\n{"txt": "b"}', r"a\.jsonl\D*2\b.*'text'.*\btxt\b"),
        ('{"text": "a"}\n{"text"', r"a\.jsonl\D*2\b"),
        ("[1]", r"a\.jsonl\D*1\b"),
        ('{"text": "a"}\n{"n": 1' + 5000 * "0" + "}", r"a\.jsonl\D*2\b"),
        ("[" * 100_000, r"a\.jsonl\D*1\b"),
        ('[{"text": "a"},\n3]', r"a\.jsonl\D*2\b"),
        ('{"text": 3}', r"a\.jsonl\D*1\b.*'text'.*\bint\b"),
        ('{"text": "\\ud800"}', r"a\.jsonl\D*1\b.*'text'\D*0\b.*\\ud800"),
    ],
)
def test_bad_jsonl_names_the_line(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(InputError, match=message):
        list(Jsonl(str(tmp_path / "a.jsonl")).read_documents())


def test_bad_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"caf\xe9")
    for corpus, message in (
        (Text(str(tmp_path / "a")), r"/a\b.*UTF-8"),
        (Text(str(tmp_path / "a"), document="line"), r"/a\b.*UTF-8"),
        (Parquet(str(tmp_path / "a")), r"/a\b.*Parquet"),
    ):
        with pytest.raises(InputError, match=message):
            list(corpus.read_documents())
    pd.DataFrame({"txt": ["a"], "n": [1]}).to_parquet(tmp_path / "b")
    with pytest.raises(InputError, match=r"/b\b.*'text'.*\btxt\b"):
        list(Parquet(str(tmp_path / "b")).read_documents())
    with pytest.raises(InputError, match=r"/b\b.*'n'.*\bint\b"):
        list(Parquet(str(tmp_path / "b"), column="n").read_documents())


def test_json_is_read_however_it_is_printed_named_or_compressed(tmp_path: Path) -> None:
    rows = [{"id": i, "text": text} for i, text in enumerate(DOCUMENTS)]
    lines = write_jsonl(tmp_path / "a.jsonl").read_bytes()
    for name, content in {
        "bom.jsonl": codecs.BOM_UTF8 + lines,
        "array.json": json.dumps(rows).encode(),
        "pretty.json": "\n".join(json.dumps(row, indent=1) for row in rows).encode(),
        "a.jsonl.gz": gzip.compress(lines),
        "a.json.zst": pyarrow.compress(lines, codec="zstd", asbytes=True),
    }.items():
        folder = tmp_path / name.replace(".", "_")
        folder.mkdir()
        (folder / name).write_bytes(content)
        for path in (folder / name, folder):
            assert list(Jsonl(str(path)).read_documents()) == DOCUMENTS


def test_a_folder_of_jsonl_stays_that_and_names_what_it_leaves_out(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl")
    (tmp_path / "info.json").write_text("{}")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b'{"text": "b"}'))
    corpus = Jsonl(str(tmp_path))
    assert corpus.files() == (tmp_path / "a.jsonl",)
    assert corpus.unread_files() == [tmp_path / "b.jsonl.gz", tmp_path / "info.json"]
    assert Text(str(tmp_path)).unread_files() == Jsonl(str(tmp_path / "a.jsonl")).unread_files() == []


def test_a_folder_without_files_of_the_kind_says_what_it_has(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("")
    with pytest.raises(InputError, match=r"'jsonl:.*\.csv\b"):
        Jsonl(str(tmp_path)).files()


def test_bad_documents_are_left_out_and_listed_on_demand(tmp_path: Path) -> None:
    good = [json.dumps({"text": text}).encode() for text in DOCUMENTS]
    bad = [b'{"text"', b"[1]", b'{"text": null}', b'{"text": "\\ud83d"}', b'{"text": "caf\xe9"}', b'{"txt": "a"}']
    (tmp_path / "a.jsonl").write_bytes(b"\n".join([*good[:10], *bad, *good[10:]]))
    corpus = Jsonl(str(tmp_path / "a.jsonl"), skip_bad=True)
    assert list(corpus.read_documents()) == DOCUMENTS
    places = [re.match(r".*/a\.jsonl, line (\d+): ", reason) for reason in corpus.skipped()]
    assert [int(place[1]) for place in places if place] == list(range(11, 17))
    assert parse_corpus(corpus.name) == corpus


def test_bad_files_paragraphs_lines_and_rows_can_be_left_out(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    for name, content in {"a": b"a\n\nb\n", "b": b"caf\xe9\n\nb\nc\n", "c": gzip.compress(b"text " * 999)[:-9]}.items():
        (tmp_path / "texts" / name).write_bytes(content)
    (tmp_path / "rows.parquet").write_bytes(b"PAR1")
    pd.DataFrame({"text": ["a", None, "b"]}).to_parquet(tmp_path / "more.parquet")
    for corpus, kept, places in (
        (Text(str(tmp_path / "texts"), skip_bad=True), ["a\n\nb\n"], ["b", "c"]),
        (Text(str(tmp_path / "texts" / "b"), skip_bad=True), ["b\nc\n"], ["b, line 1"]),
        (Text(str(tmp_path / "texts" / "b"), document="line", skip_bad=True), ["\n", "b\n", "c\n"], ["b, line 1"]),
        (Parquet(str(tmp_path), skip_bad=True), ["a", "b"], ["more.parquet, row 2", "rows.parquet"]),
    ):
        assert list(corpus.read_documents()) == kept
        assert [re.split(r": ", reason)[0].rpartition("/")[2] for reason in corpus.skipped()] == places


def test_a_corpus_of_one_document_can_be_split_by_lines(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    assert f"text:{tmp_path}/a.txt?document=line" in Text(str(tmp_path / "a.txt")).advice_to_split()
    (tmp_path / "a.txt").write_text("one")
    assert "document=line" not in Text(str(tmp_path / "a.txt")).advice_to_split()


def test_source_follows_the_files(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl")
    before = Jsonl(str(path)).source_hash()
    assert Jsonl(str(path)).source_hash() == before
    path.write_text('{"text": "other"}\n')
    assert Jsonl(str(path)).source_hash() != before
