"""Names of corpora, the embedded corpus and its held-out files."""

import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from scaling.data.corpora import CORPUS_KINDS, SPLITS, Stdlib, parse_corpus
from scaling.data.file_corpora import Jsonl, Text
from scaling.data.synthetic import Walk, Zipf
from scaling.errors import InputError


@pytest.mark.parametrize(
    ("name", "corpus"),
    [
        ("stdlib", Stdlib()),
        ("walk?nodes=8&edges=9", Walk(nodes=8, edges=9)),
        ("zipf?exponent=1.5&facts=10", Zipf(facts=10, exponent=1.5)),
        ("text:a folder/*.md?document=line", Text("a folder/*.md", document="line")),
        ("text:file?.txt", Text("file?.txt")),
        ("jsonl:x.jsonl?field=body", Jsonl("x.jsonl", field="body")),
    ],
)
def test_names_parse_and_come_back(name: str, corpus: object) -> None:
    parsed = parse_corpus(name)
    assert parsed == corpus
    assert parse_corpus(parsed.name) == corpus
    assert "/" not in parsed.slug


def test_different_corpora_have_different_slugs() -> None:
    names = [
        "stdlib",
        "walk",
        "walk?nodes=20",
        "walk?nodes=21",
        "text:a/x.txt",
        "text:b/x.txt",
        "text:a/x.txt?document=line",
    ]
    assert len({parse_corpus(name).slug for name in names}) == len(names)
    assert parse_corpus("walk?nodes=20&seed=1").slug == parse_corpus("walk?seed=1&nodes=20").slug


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("stdlb", r"'stdlb'.*\bstdlib\b"),
        ("mine/fs.md", r"'mine/fs\.md'.*\btext:mine/fs\.md\?$"),
        ("mine/*.jsonl.gz?field=a", r"\bjsonl:mine/\*\.jsonl\.gz\?field=a\?$"),
        ("jsnl:a.jsonl", r"'jsnl:a\.jsonl'; did you mean jsonl\?"),
        ("text:x?skip_bad=1", r"skip_bad\D*'1'.*true.*false"),
        ("", "''.*" + ".*".join(sorted(CORPUS_KINDS))),
        ("jsonl:x?feild=a", r"'jsonl:x\?feild=a'.*\bfeild\b.*\bfield\b"),
        ("walk?kind=zipf", r"\bkind\b.*edges.*nodes.*seed.*tokens"),
        ("text:x?path=y", r"\bpath\b.*\bdocument\b"),
        ("jsonl", "'jsonl'.*jsonl:PATH"),
        ("stdlib:x", "'stdlib:x'"),
        ("walk?nodes=many", r"'walk\?nodes=many'.*'many'"),
        ("walk?nodes=2", r"'walk\?nodes=2'.*Walk\.nodes\D*2\D*3\D*94\b"),
        ("text:x?document=page", r"Text\.document.*'page'.*'file'.*'line'.*'paragraph'"),
    ],
)
def test_a_wrong_name_is_quoted_with_the_right_choices(name: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        parse_corpus(name)
    assert re.search(message, str(error.value))
    assert "\n" not in str(error.value)


def test_a_mixture_names_the_command_that_prepares_it() -> None:
    with pytest.raises(InputError, match=r"scaling data mixture code .*--train-tokens"):
        parse_corpus("mixture:code").source_hash()


def test_stdlib_is_the_interpreters_own_source() -> None:
    files = Stdlib().files()
    names = [name for name, _ in files]
    assert names == sorted(names)
    assert {"os.py", "json/decoder.py"} <= set(names)
    assert not any("site-packages" in name for name in names)
    train, validation = (list(Stdlib().documents(split)) for split in SPLITS)
    assert len(train) + len(validation) + Stdlib().count_skipped() == len(files)
    assert 0.01 < len(validation) / len(files) < 0.05
    text = Path(sysconfig.get_path("stdlib"), "json/decoder.py").read_bytes().decode()
    assert text in train


@pytest.fixture
def small_stdlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sysconfig, "get_path", lambda name: {"stdlib": str(tmp_path)}[name])
    for number in range(200):
        (tmp_path / f"m{number:03d}.py").write_text(f"x = {number}\n")
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "site-packages" / "other.py").write_text("foreign")
    (tmp_path / "latin.py").write_bytes(b"# caf\xe9")
    (tmp_path / "ends.py").write_bytes(b"a\r\nb\rc\x00\n")
    (tmp_path / "notes.txt").write_text("not source")
    return tmp_path


def test_stdlib_skips_files_that_are_not_utf8_and_keeps_line_ends(small_stdlib: Path) -> None:
    texts = [text for split in SPLITS for text in Stdlib().documents(split)]
    assert sorted(texts) == sorted([*(f"x = {n}\n" for n in range(200)), "a\r\nb\rc\x00\n"])
    assert Stdlib().count_skipped() == 1


def test_held_out_files_do_not_depend_on_the_others_or_on_contents(small_stdlib: Path) -> None:
    validation_texts = list(Stdlib().documents("validation"))
    assert validation_texts
    for number in range(0, 200, 2):
        (small_stdlib / f"m{number:03d}.py").unlink()
    assert list(Stdlib().documents("validation")) == [text for text in validation_texts if int(text.split("= ")[1]) % 2]
    for path in small_stdlib.glob("m*.py"):
        path.write_text("other " + path.read_text())
    expected = ["other " + text for text in validation_texts if int(text.split("= ")[1]) % 2]
    assert list(Stdlib().documents("validation")) == expected


def test_source_follows_the_contents(small_stdlib: Path) -> None:
    before = Stdlib().source_hash()
    assert Stdlib().source_hash() == before
    (small_stdlib / "m007.py").write_text("x = 8\n")
    changed = Stdlib().source_hash()
    (small_stdlib / "m007.py").rename(small_stdlib / "renamed.py")
    assert len({before, changed, Stdlib().source_hash()}) == 3


def test_reading_corpora_and_tokens_loads_no_heavy_package() -> None:
    script = "import sys, scaling.data.shards, scaling.data.prepare; print(*sorted(sys.modules))"
    loaded = set(
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    )
    assert "scaling.data.file_corpora" in loaded
    assert not loaded & {"tensorflow", "seqio", "datasets", "sentencepiece", "torch", "jax"}
