"""`scaling generate`: text as it is made, whole characters only, and what it refuses."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from scaling.commands import generate
from scaling.commands.generate import pieces_of_text, prompt_ids
from scaling.config.run_config import RunConfig
from scaling.data.tokenizer import ByteTokenizer
from scaling.training.train import train
from tests.conftest import in_process

pytestmark = pytest.mark.usefixtures("unoptimized_programs")

TEXT = "aé😀\u0301\n end"


@pytest.fixture(scope="module")
def run(tiny: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generate") / "run"
    assert train(tiny, folder, quiet=True) == "done"
    return folder


def test_characters_are_shown_when_they_are_whole() -> None:
    tokenizer = ByteTokenizer()
    ids = [*tokenizer.encode(TEXT).tolist(), 1]
    shown = list(pieces_of_text(tokenizer, ids))
    assert "".join(shown) == TEXT
    assert shown[:8] == ["a", "", "é", "", "", "", "😀", ""]


@pytest.mark.parametrize("ids", [[98 + 3, 0xF0 + 3, 0x9F + 3], [0xC3 + 3, 98 + 3], [0x80 + 3, 300, 0, 98 + 3]])
def test_bytes_that_are_no_text_are_shown_as_they_decode(ids: list[int]) -> None:
    tokenizer = ByteTokenizer()
    assert "".join(pieces_of_text(tokenizer, ids)) == tokenizer.decode(ids)


def test_text_comes_while_it_is_made(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each character is out before the next token is asked for."""
    out, seen = io.StringIO(), []

    def ids(*_: object) -> Iterator[int]:
        for i in ByteTokenizer().encode("abc"):
            seen.append(out.getvalue())
            yield int(i)

    monkeypatch.setattr(generate, "stream", ids)
    monkeypatch.setattr(sys, "stdout", out)
    generate.generate(run, prompt="> ")
    assert seen == ["> ", "> a", "> ab"]
    assert out.getvalue() == "> abc\n"


def test_a_prompt_stands_after_the_end_of_the_document_before_it() -> None:
    assert prompt_ids(ByteTokenizer(), "ab").tolist() == [1, 100, 101]
    assert prompt_ids(ByteTokenizer(), "").tolist() == [1]


def test_the_verb_writes_text_and_facts(run: Path, tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text("é b", encoding="utf-8")
    again = ["generate", run, "--prompt-file", "prompt.txt", "--tokens", "20", "--json"]
    done = in_process(*again, "one.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    one = json.loads((tmp_path / "one.json").read_text())
    (sample,) = one["samples"]
    assert done.stdout == "é b" + sample["text"] + "\n"
    assert one["prompt_ids"][0] == 1
    assert 0 < len(sample["ids"]) <= 20
    assert done.stderr == ""
    for name, option in (("same", ("--seed", "0")), ("other", ("--seed", "1")), ("three", ("--samples", "3"))):
        assert in_process(*again, f"{name}.json", *option, cwd=tmp_path).returncode == 0
    same, other, three = (
        json.loads((tmp_path / f"{n}.json").read_text())["samples"] for n in ("same", "other", "three")
    )
    assert same == one["samples"] != other
    assert three[0] == sample
    assert len({tuple(each["ids"]) for each in three}) == 3


def test_a_window_past_the_trained_length_is_announced(run: Path, tmp_path: Path) -> None:
    asked = ("generate", run, "--prompt", "a", "--tokens", "40", "--json", "made.json")
    done = in_process(*asked, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads((tmp_path / "made.json").read_text())["window"] == 32
    done = in_process(*asked, "--window", "64", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"window\D*64\b\D*32\b", done.stderr)) == 1


def test_the_prompt_may_come_through_a_pipe(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO("pipéd".encode())))
    done = in_process("generate", run, "--prompt-file", "-", "--tokens", "20", cwd=tmp_path)
    assert done.stdout.startswith("pipéd")
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"ab\xff")))
    done = in_process("generate", run, "--prompt-file", "-", "--tokens", "20", cwd=tmp_path)
    assert done.returncode == 2
    assert re.search(r"prompt_file.*'-'.*UTF-8\D*2\b", done.stderr)
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--temperature", "-1"), r"Sampling\.temperature.*-1\.0\D*0\b"),
        (("--top-p", "1.01"), r"Sampling\.top_p\D*1\.01\D*0\D*1\b"),
        (("--top-k", "0"), r"Sampling\.top_k\D*0\D*1\b"),
        (("--tokens", "0"), r"tokens\D*0\D*1\b"),
        (("--seed", "-3"), r"seed.*-3\D*0\b"),
        (("--window", "1"), r"window\D*1\D*2\b"),
        (("--samples", "0"), r"samples\D*0\D*1\b"),
        (("--samples", "2", "--temperature", "0"), r"samples\D*2\D*1\b.*temperature\D*0\b"),
        (("--prompt", "a\udcff"), r"\b1\b.*\\udcff"),
        (("--prompt", "a", "--prompt-file", "b"), r"\bprompt\b.*\bprompt_file\b"),
        (("--prompt-file", "absent"), "prompt_file.*'absent'.*No such file or directory"),
        (("--step", "3"), r"step\D*3\b.*\b32\b"),
    ],
)
def test_what_cannot_be_made_is_said_in_one_line(
    options: tuple[str, ...], named: str, run: Path, tmp_path: Path
) -> None:
    done = in_process("generate", run, *options, cwd=tmp_path)
    assert done.returncode == 2
    assert re.search(named, done.stderr)
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_a_run_without_checkpoints_is_said_in_one_line(run: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((run / "config.json").read_bytes())
    done = in_process("generate", tmp_path, cwd=tmp_path)
    assert done.returncode == 2
    assert re.search(rf"{tmp_path}\b.*checkpoints/", done.stderr)
    assert done.stderr.count("\n") == 1


def test_a_vocabulary_larger_than_the_model_is_said_in_one_line(run: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(ByteTokenizer, "encode", lambda self, text: [i + 200 for i in text.encode()])
    monkeypatch.setattr(ByteTokenizer, "decode", lambda self, ids: bytes(i - 200 for i in ids).decode())
    done = in_process("generate", run, "--prompt", "abc", cwd=tmp_path)
    assert done.returncode == 2
    assert re.search(r"\b299\b.*vocab_size\D*259\b", done.stderr)
    assert done.stderr.count("\n") == 1
