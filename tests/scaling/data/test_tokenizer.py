"""Tokenizers decode what they encoded, and know how many bytes every id stands for."""

import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from scaling.data.tokenizer import (
    ByteTokenizer,
    SentencePieceTokenizer,
    Tokenizer,
    load_tokenizer,
    train_sentencepiece,
)
from scaling.errors import InputError

TEXTS = (
    "",
    " ",
    "\n\n\t  indented\r\n",
    "  two  spaces  ",
    "naïve ﬁ ½ Ａ\u00a0x",
    "👩‍🔬 emoji 😀 \U0010ffff",
    "a literal ▁ mark ▁▁",
    "\x00 nul \x7f",
    "\ufeffmark",
    "decomposed e\u0301 日本語",
)


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory: pytest.TempPathFactory) -> SentencePieceTokenizer:
    texts = [Path(np.__file__).read_text(encoding="utf-8"), Path(pytest.__file__).read_text(encoding="utf-8")]
    return train_sentencepiece(texts, 600, tmp_path_factory.mktemp("model") / "pieces.model")


@pytest.fixture(params=["byte", "sentencepiece"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return ByteTokenizer() if request.param == "byte" else request.getfixturevalue("sentencepiece")


@pytest.mark.parametrize("text", TEXTS)
def test_every_text_comes_back_and_its_bytes_are_exact(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.bytes_per_token[ids].sum() == len(text.encode())
    assert tokenizer.eos_id not in ids
    assert tokenizer.decode([*ids, tokenizer.eos_id]) == text


def test_ids_beyond_the_vocabulary_are_no_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("ab").tolist()
    assert tokenizer.decode([tokenizer.size, *ids, tokenizer.size + 99]) == "ab"


def test_table_of_bytes_covers_the_vocabulary(tokenizer: Tokenizer) -> None:
    assert tokenizer.bytes_per_token.shape == (tokenizer.size,)
    assert (tokenizer.bytes_per_token == 0).nonzero()[0].tolist() == [0, 1, 2]


def test_byte_ids_are_bytes_plus_three() -> None:
    assert ByteTokenizer().encode("aé").tolist() == [97 + 3, 0xC3 + 3, 0xA9 + 3]
    assert ByteTokenizer().size == 259


def test_sentencepiece_merges_words_it_has_seen(sentencepiece: SentencePieceTokenizer) -> None:
    text = "import numpy as np\n"
    assert len(sentencepiece.encode(text)) < 0.8 * len(text)
    assert sentencepiece.size == 600
    assert load_tokenizer(sentencepiece.name).slug == sentencepiece.slug


def test_lone_surrogate_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match=r"\b1\b.*\\ud800"):
        tokenizer.encode("a\ud800")


def test_a_model_that_loses_text_is_refused(tmp_path: Path) -> None:
    spm = pytest.importorskip("sentencepiece")
    words = (f"word{i} other{i % 7}" for i in range(200))
    with (tmp_path / "lossy.model").open("wb") as model:
        spm.SentencePieceTrainer.train(
            sentence_iterator=words, model_writer=model, vocab_size=60, hard_vocab_limit=False, minloglevel=2
        )
    with pytest.raises(InputError, match=r"lossy\.model.*byte_fallback"):
        load_tokenizer(str(tmp_path / "lossy.model"))


def test_errors_name_the_vocabulary(tmp_path: Path) -> None:
    (tmp_path / "not.model").write_bytes(b"not a model")
    with pytest.raises(InputError, match=r"'bite'.*\bbyte\b"):
        load_tokenizer("bite")
    with pytest.raises(InputError, match=r"not\.model"):
        load_tokenizer(str(tmp_path / "not.model"))


def test_too_little_text_for_the_size_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\b5000\b"):
        train_sentencepiece(["a b"], 5000, tmp_path / "m.model")
    assert not (tmp_path / "m.model").exists()


def test_a_model_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.model"
    old = train_sentencepiece(TEXTS, 300, path).slug

    def full_disk(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(InputError, match=rf"m\.model.*{os.strerror(errno.ENOSPC)}"):
        train_sentencepiece(["other words"] * 50, 280, path)
    assert load_tokenizer(str(path)).slug == old
    assert [left.name for left in tmp_path.iterdir()] == ["m.model"]


def test_an_error_of_the_texts_passes_through_sentencepiece(tmp_path: Path) -> None:
    def texts() -> Iterator[str]:
        yield "words"
        raise InputError("line 2: no field")

    with pytest.raises(InputError, match=r"^line 2: no field$"):
        train_sentencepiece(texts(), 300, tmp_path / "m.model")


def test_missing_package_is_named(
    sentencepiece: SentencePieceTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(InputError, match=r"sentencepiece.*scaling-laws\[data\]"):
        load_tokenizer(sentencepiece.name)
    with pytest.raises(InputError, match=r"sentencepiece.*scaling-laws\[data\]"):
        train_sentencepiece(["text"], 300, tmp_path / "m.model")
    assert list(tmp_path.iterdir()) == []
