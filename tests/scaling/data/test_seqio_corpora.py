"""seqio writes the shards that the plain reader writes. It is imported in a subprocess, for it costs seconds."""

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
    theirs = seqio_corpora.to_seqio_vocabulary(load_tokenizer(kind))
    facts[name] = {"ids": [theirs.encode_tf(text).numpy().tolist() for text in texts], "eos": theirs.eos_id,
                   "size": theirs.vocab_size}
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
    done = subprocess.run([sys.executable, "-c", SCRIPT, arguments], env=quiet, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "by_seqio" / "facts.json").read_text())


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("kind", ["byte", "pieces"])
def test_ids_are_seqios(seqio_facts: dict[str, Any], model: str, kind: str) -> None:
    ours, theirs = load_tokenizer("byte" if kind == "byte" else model), seqio_facts[kind]
    assert [ours.encode(text).tolist() for text in TEXTS] == theirs["ids"]
    assert (ours.eos_id, ours.size) == (theirs["eos"], theirs["size"])
    if kind == "byte":
        assert [ByteTokenizer().encode(text).tolist() for text in TEXTS] == seqio_facts["seqio.ByteVocabulary"]


@pytest.mark.parametrize("kind", ["byte", "pieces"])
def test_shards_are_the_same_bytes_by_both_roads(
    seqio_facts: dict[str, Any], folder: Path, corpus: str, model: str, kind: str
) -> None:
    vocabulary = "byte" if kind == "byte" else model
    plain = prepare(corpus, folder / "plain", vocabulary, backend="plain", shard_tokens=1000)
    theirs = contents(folder / "by_seqio" / plain.folder.relative_to(folder / "plain"))
    assert {"meta.json", "bytes_per_token.npy", "train-00003.bin", "validation-00000.bin"} <= set(theirs)
    assert contents(plain.folder) == theirs


@pytest.mark.parametrize("kind", ["byte", "pieces"])
def test_packing_is_seqios(seqio_facts: dict[str, Any], folder: Path, corpus: str, model: str, kind: str) -> None:
    tokens = open_shards(folder / "by_seqio", corpus, "byte" if kind == "byte" else model)
    packed = np.load(folder / "by_seqio" / "windows.npz")
    assert np.array_equal(read_validation_windows(tokens, 16, 10**9), packed[f"{kind}-validation"])
    count = tokens.train.count_windows(16)
    ours = tokens.train.gather(np.arange(count)[:, None] * 16 + np.arange(17))
    assert np.array_equal(ours, packed[f"{kind}-train"])


def test_synthetic_corpora_are_tasks_too(seqio_facts: dict[str, Any], folder: Path) -> None:
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
    ours = [text for text in documents if text in set(TEXTS)]
    assert 0 < len(documents) - len(ours) < len(ours)
    assert sum(len(ids) for ids in np.split(stream, np.flatnonzero(stream == 1) + 1)[:-1]) == len(stream)


@pytest.mark.slow
def test_stdlib_is_the_same_by_both_roads_where_prepare_chooses(
    folder: Path, stdlib: tuple[Path, subprocess.CompletedProcess[str]]
) -> None:
    place, done = stdlib
    assert "tensorflow" not in (done.stdout + done.stderr).lower()
    chosen = place / "out" / "corpora"
    plain = prepare("stdlib", folder / "plain", backend="plain")
    assert contents(chosen / plain.folder.relative_to(folder / "plain")) == contents(plain.folder)
    for split in SPLITS:
        assert plain.meta["splits"][split]["documents"] > 0


def test_what_is_wrong_with_a_corpus_comes_through_tensorflow(seqio_facts: dict[str, Any], folder: Path) -> None:
    """That `prepare` raises what was said there is seen on a full disk, in test_data_verbs.py."""
    assert re.match(rf"{folder}/bad\.jsonl\D*2\b.*'text'.*\btxt\b", seqio_facts["bad corpus"])
    assert "\n" not in seqio_facts["bad corpus"]
    assert [left.name for left in (folder / "by_seqio" / "bad").glob("*/*")] == [".lock"]
