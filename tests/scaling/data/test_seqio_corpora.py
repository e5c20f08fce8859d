"""The seqio backend writes the same shards as the plain one. It runs in a subprocess: importing it takes seconds."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scaling.data.corpora import SPLITS
from scaling.data.prepare import prepare
from scaling.data.shards import open_shards, read_validation_windows
from scaling.data.tokenizer import ByteTokenizer, load_tokenizer, train_sentencepiece

pytestmark = pytest.mark.skipif(importlib.util.find_spec("seqio") is None, reason="seqio is not installed")

TEXTS = [
    *("", " ", "\n", "\x00", "a\x00b\x00", "\n\n  spaces \r\n\t", "▁", "▁▁ a ▁b▁", " ▁ ", "\ufeffmark", "\x7f\x80\xff"),
    *("é e\u0301 ﬁ ½", "👩‍🔬😀\U0010ffff\ufffe", "日本語", "pad <pad> </s> <unk> <0x41>", "long " * 5000),
    *(f"document {i}\nline é {i * i}\n" for i in range(400)),
]

SCRIPT = """
import json, sys
import numpy as np, seqio
from scaling.data import seqio_corpora
from scaling.errors import InputError
from scaling.data.tokenizer import load_tokenizer
corpus, bad, model, out, texts = json.loads(sys.argv[1])
facts, arrays = {}, {}
for kind in ("byte", model):
    name = "byte" if kind == "byte" else "pieces"
    vocabulary = seqio_corpora.to_seqio_vocabulary(load_tokenizer(kind))
    facts[name] = {"ids": [vocabulary.encode_tf(text).numpy().tolist() for text in texts], "eos": vocabulary.eos_id,
                   "size": vocabulary.vocab_size}
    seqio_corpora.write_task_shards(corpus, out, kind, shard_tokens=1000)
    for split in ("train", "validation"):
        packed = seqio_corpora.pack_windows(seqio_corpora.register_task(corpus, kind), split, 16)
        arrays[f"{name}-{split}"] = np.stack(list(packed.as_numpy_iterator()))
plain = seqio.ByteVocabulary()
facts["seqio.ByteVocabulary"] = [plain.encode_tf(text).numpy().tolist() for text in texts]
seqio_corpora.write_task_shards("walk?tokens=4096", out, "byte")
rates = {corpus: 3.0, "stdlib": 1.0}
for number in (1, 2):
    seqio_corpora.write_mixture_shards("both", rates, f"{out}/{number}", train_tokens=300_000, validation_tokens=20_000)
    seqio.MixtureRegistry.reset()
try:
    seqio_corpora.register_mixture("bad", {corpus: 0.0})
except InputError as error:
    facts["bad rate"] = str(error)
try:
    seqio_corpora.write_task_shards(bad, f"{out}/bad", "byte")
except InputError as error:
    facts["bad corpus"] = str(error)
mixed = seqio_corpora.register_mixture("named", rates)
registered = (seqio_corpora.register_task(corpus).name, "named")
facts["registered"] = [seqio.get_mixture_or_task(name).name for name in registered]
facts["rates"] = {task.name: mixed.get_rate(task) for task in mixed.tasks}
np.savez(f"{out}/windows.npz", **arrays)
json.dump(facts, open(f"{out}/facts.json", "w"))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("seqio")


@pytest.fixture(scope="module")
def corpus(folder: Path) -> str:
    path = folder / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return f"jsonl:{path}"


@pytest.fixture(scope="module")
def model(folder: Path) -> str:
    return train_sentencepiece(TEXTS, 400, folder / "pieces.model").name


@pytest.fixture(scope="module")
def seqio_facts(folder: Path, corpus: str, model: str) -> dict[str, Any]:
    (folder / "by_seqio").mkdir()
    (folder / "bad.jsonl").write_text('{"text": "a"}\n{"txt": "b"}\n')
    arguments = json.dumps([corpus, f"jsonl:{folder}/bad.jsonl", model, str(folder / "by_seqio"), TEXTS])
    quiet = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    process = subprocess.run([sys.executable, "-c", SCRIPT, arguments], env=quiet, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr[-3000:]
    return json.loads((folder / "by_seqio" / "facts.json").read_text())


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("kind", ["byte", "pieces"])
def test_tokenizers_have_the_ids_of_seqio(seqio_facts: dict[str, Any], model: str, kind: str) -> None:
    tokenizer, expected = load_tokenizer("byte" if kind == "byte" else model), seqio_facts[kind]
    assert [tokenizer.encode(text).tolist() for text in TEXTS] == expected["ids"]
    assert (tokenizer.eos_id, tokenizer.size) == (expected["eos"], expected["size"])
    if kind == "byte":
        assert [ByteTokenizer().encode(text).tolist() for text in TEXTS] == seqio_facts["seqio.ByteVocabulary"]


@pytest.mark.parametrize("kind", ["byte", "pieces"])
def test_both_backends_write_the_same_bytes(
    seqio_facts: dict[str, Any], folder: Path, corpus: str, model: str, kind: str
) -> None:
    vocabulary = "byte" if kind == "byte" else model
    plain = prepare(corpus, folder / "plain", vocabulary, backend="plain", shard_tokens=1000)
    seqio_files = contents(folder / "by_seqio" / plain.folder.relative_to(folder / "plain"))
    assert {"meta.json", "bytes_per_token.npy", "train-00003.bin", "validation-00000.bin"} <= set(seqio_files)
    assert contents(plain.folder) == seqio_files


@pytest.mark.parametrize("kind", ["byte", "pieces"])
def test_windows_equal_those_of_tf_data(
    seqio_facts: dict[str, Any], folder: Path, corpus: str, model: str, kind: str
) -> None:
    tokens = open_shards(folder / "by_seqio", corpus, "byte" if kind == "byte" else model)
    packed = np.load(folder / "by_seqio" / "windows.npz")
    assert np.array_equal(read_validation_windows(tokens, 16, 10**9), packed[f"{kind}-validation"])
    count = tokens.train.count_windows(16)
    windows_NS = tokens.train.gather(np.arange(count)[:, None] * 16 + np.arange(17))
    assert np.array_equal(windows_NS, packed[f"{kind}-train"])


def test_both_backends_write_synthetic_corpora_alike(seqio_facts: dict[str, Any], folder: Path) -> None:
    plain = prepare("walk?tokens=4096", folder / "plain", backend="plain")
    assert contents(plain.folder) == contents(folder / "by_seqio" / plain.folder.relative_to(folder / "plain"))


def test_a_mixture_is_registered_with_its_rates(seqio_facts: dict[str, Any], corpus: str) -> None:
    assert sorted(seqio_facts["rates"].values()) == [1.0, 3.0]
    assert seqio_facts["rates"]["stdlib.byte"] == 1.0
    assert seqio_facts["registered"][1] == "named"
    assert re.search(rf"'bad'.*{re.escape(repr(corpus))}\D*0\.0\b", seqio_facts["bad rate"])


def test_a_mixture_is_whole_documents_of_its_corpora_and_repeatable(
    seqio_facts: dict[str, Any], folder: Path, corpus: str
) -> None:
    mixed = open_shards(folder / "by_seqio" / "1", "mixture:both")
    assert mixed.fingerprint == open_shards(folder / "by_seqio" / "2", "mixture:both").fingerprint
    assert mixed.train.tokens >= 300_000
    stream = np.concatenate(mixed.train.shards)
    documents = [ByteTokenizer().decode(part) for part in np.split(stream, np.flatnonzero(stream == 1) + 1)[:-1]]
    from_corpus = [text for text in documents if text in set(TEXTS)]
    assert 0 < len(documents) - len(from_corpus) < len(from_corpus)
    assert sum(len(ids) for ids in np.split(stream, np.flatnonzero(stream == 1) + 1)[:-1]) == len(stream)


@pytest.mark.slow
def test_prepare_chooses_seqio_for_stdlib_and_writes_the_same_bytes(
    folder: Path, stdlib: tuple[Path, subprocess.CompletedProcess[str]]
) -> None:
    folder_of_run, process = stdlib
    assert "tensorflow" not in (process.stdout + process.stderr).lower()
    chosen = folder_of_run / "out" / "corpora"
    plain = prepare("stdlib", folder / "plain", backend="plain")
    assert contents(chosen / plain.folder.relative_to(folder / "plain")) == contents(plain.folder)
    for split in SPLITS:
        assert plain.meta["splits"][split]["documents"] > 0


def test_the_error_of_a_corpus_passes_through_tensorflow(seqio_facts: dict[str, Any], folder: Path) -> None:
    """tests/scaling/commands/test_data.py shows with a full disk that `prepare` raises the error of its subprocess."""
    assert re.match(rf"{folder}/bad\.jsonl\D*2\b.*'text'.*\btxt\b", seqio_facts["bad corpus"])
    assert "\n" not in seqio_facts["bad corpus"]
    assert [left.name for left in (folder / "by_seqio" / "bad").glob("*/*")] == [".lock"]
