"""Documents to token shards: one writer for both roads, the plain reader here and seqio in tasks.py.

Not in the design's list of modules: tokens.py is what training imports, to read; this writes.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

from scaling.corpora import CORPORA, SPLITS, Corpus, Mixture, SplitName, Stdlib, parse_corpus
from scaling.strict import InputError
from scaling.tokens import SCHEMA, read_meta, shards_folder
from scaling.vocabulary import Vocabulary, load_vocabulary

SHARD_TOKENS = 1 << 26
TEMPORARY = ".writing-"
Road = Literal["auto", "plain", "seqio"]


@dataclass(frozen=True)
class Prepared:
    """What `prepare` left on disk. meta: the contents of meta.json. seconds: 0 when it was there already."""

    folder: Path
    meta: dict[str, Any]
    seconds: float

    @property
    def fingerprint(self) -> str:
        return self.meta["fingerprint"]


def prepare(
    name: str,
    directory: Path | str = "out/corpora",
    vocabulary: str = "byte",
    road: Road = "auto",
    shard_tokens: int = SHARD_TOKENS,
) -> Prepared:
    """Writes the token shards of a corpus, unless they are there and their source has not changed since.

    road: auto goes through seqio (a subprocess: TensorFlow) where that is installed. The shards are the same bytes.
    Raises InputError on an unknown or empty corpus, an unreadable source, a token out of vocabulary.
    """
    folder = shards_folder(directory, name, vocabulary)
    corpus = parse_corpus(name)
    started = time.monotonic()
    if (meta := current(folder, None if isinstance(corpus, Mixture) else corpus.source())) is None:
        if road == "seqio" or (road == "auto" and importlib.util.find_spec("seqio")):
            _prepare_by_seqio(name, directory, vocabulary, shard_tokens)
        else:
            _prepare_plain(corpus, folder, load_vocabulary(vocabulary), shard_tokens)
        meta = read_meta(folder)
        assert meta is not None
        return Prepared(folder, meta, time.monotonic() - started)
    return Prepared(folder, meta, 0.0)


def current(folder: Path, source: str | None) -> dict[str, Any] | None:
    """meta.json of the shards in `folder` if they came from `source` (None: from any), else None."""
    meta = read_meta(folder)
    return meta if meta is not None and source in (None, meta["source"]) else None


def _prepare_plain(corpus: Corpus, folder: Path, vocabulary: Vocabulary, shard_tokens: int) -> None:
    columns = TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:

        def documents(split: SplitName) -> Iterator[np.ndarray]:
            task = progress.add_task(f"{corpus.name} {split} documents", total=None)
            for text in corpus.documents(split):
                yield np.append(vocabulary.encode(text), vocabulary.eos_id)
                progress.advance(task)

        write_shards(folder, corpus, vocabulary, {split: documents(split) for split in SPLITS}, shard_tokens)


def _prepare_by_seqio(name: str, directory: Path | str, vocabulary: str, shard_tokens: int) -> None:
    quiet = {
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "CUDA_VISIBLE_DEVICES": "-1",
        "JAX_PLATFORMS": "cpu",
        "PYTHONWARNINGS": "ignore",
    }
    options = ["--directory", str(directory), "--vocabulary", vocabulary, "--shard-tokens", str(shard_tokens)]
    command = [sys.executable, "-m", "scaling.tasks", "prepare", name, *options]
    with Console(stderr=True).status(f"{name}: prepared through seqio"):
        done = subprocess.run(command, env={**os.environ, **quiet}, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"it ended with code {done.returncode}"])[-1]
        raise InputError(
            last if done.returncode == 2 else f"seqio could not prepare {name!r}: {last}; try --road plain"
        )


def write_shards(
    folder: Path,
    corpus: Corpus,
    vocabulary: Vocabulary,
    documents: Mapping[SplitName, Iterable[np.ndarray]],
    shard_tokens: int = SHARD_TOKENS,
    source: str | None = None,
) -> None:
    """Writes documents (ids [n], end of document included) as shards of `shard_tokens`, and meta.json.

    Everything goes to a temporary folder that is renamed at the end: a killed writer leaves no half corpus. One writer
    at a time a directory; a second waits, and returns when the first has written the same. Raises InputError on a
    token out of vocabulary or a split without documents.
    """
    source = corpus.source() if source is None else source
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder.parent):
        if current(folder, source) is not None:
            return
        for stale in folder.parent.glob(f"{TEMPORARY}*"):
            shutil.rmtree(stale)
        written = Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=folder.parent))
        try:
            meta = _write_all(written, corpus, vocabulary, documents, shard_tokens, source)
            _write_json(written / "meta.json", meta)
            _put(written, folder)
        finally:
            shutil.rmtree(written, ignore_errors=True)


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    with (directory / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _put(written: Path, folder: Path) -> None:
    written.chmod(0o755)
    if folder.exists():
        old = Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=folder.parent))
        os.rename(folder, old / "old")
        os.rename(written, folder)
        shutil.rmtree(old)
    else:
        os.rename(written, folder)


def _write_all(
    folder: Path,
    corpus: Corpus,
    vocabulary: Vocabulary,
    documents: Mapping[SplitName, Iterable[np.ndarray]],
    shard_tokens: int,
    source: str,
) -> dict[str, Any]:
    dtype = np.dtype("<u2" if vocabulary.size <= 1 << 16 else "<u4")
    digest = hashlib.sha256(f"{vocabulary.size} {vocabulary.eos_id} {dtype.str}".encode())
    digest.update(vocabulary.bytes_per_token.tobytes())
    np.save(folder / "bytes_per_token.npy", vocabulary.bytes_per_token)
    splits = {}
    for split in SPLITS:
        digest.update(split.encode())
        splits[split] = _write_split(folder, corpus, split, vocabulary, documents[split], shard_tokens, dtype, digest)
    return {
        "schema": SCHEMA,
        "corpus": corpus.name,
        "vocabulary": vocabulary.slug,
        "vocab_size": vocabulary.size,
        "eos_id": vocabulary.eos_id,
        "dtype": dtype.str,
        "shard_tokens": shard_tokens,
        "source": source,
        "splits": splits,
        "fingerprint": digest.hexdigest()[:16],
        **({"skipped_files": corpus.skipped()} if isinstance(corpus, Stdlib) else {}),
    }


def _write_split(
    folder: Path,
    corpus: Corpus,
    split: SplitName,
    vocabulary: Vocabulary,
    documents: Iterable[np.ndarray],
    shard_tokens: int,
    dtype: np.dtype,
    digest: Any,
) -> dict[str, Any]:
    shards: list[str] = []
    facts = {"tokens": 0, "documents": 0, "bytes": 0, "max_id": 0}
    with contextlib.ExitStack() as open_shard:
        file: Any = None
        for ids in documents:
            facts["max_id"] = max(facts["max_id"], _checked_max(ids, corpus, split, facts["documents"], vocabulary))
            facts["documents"] += 1
            facts["bytes"] += int(vocabulary.bytes_per_token[ids].sum())
            while len(ids):
                room = shard_tokens - facts["tokens"] % shard_tokens
                if room == shard_tokens:
                    open_shard.close()
                    shards.append(f"{split}-{len(shards):05d}.bin")
                    file = open_shard.enter_context((folder / shards[-1]).open("wb"))
                content = ids[:room].astype(dtype).tobytes()
                file.write(content)
                digest.update(content)
                facts["tokens"] += min(room, len(ids))
                ids = ids[room:]
    if not facts["documents"]:
        raise InputError(f"corpus {corpus.name!r} is empty: no document in the {split} split (both need one)")
    return {"shards": shards, **facts}


def _checked_max(ids: np.ndarray, corpus: Corpus, split: SplitName, number: int, vocabulary: Vocabulary) -> int:
    for worst in (int(ids.max()), int(ids.min())):
        if not 0 <= worst < vocabulary.size:
            raise InputError(
                f"corpus {corpus.name!r}, {split} document {number}: token {worst} is out of vocabulary "
                f"{vocabulary.slug!r}, which has {vocabulary.size} ids"
            )
    return int(ids.max())


def data_prepare(
    name: str,
    /,
    directory: str = "out/corpora",
    vocabulary: str = "byte",
    road: Road = "auto",
    json: Path | None = None,
) -> None:
    """Write the token shards of a corpus, once; a second call finds them.

    Args:
        name: stdlib, walk, zipf, text:PATH, jsonl:PATH, parquet:PATH, hf:NAME; options as in jsonl:PATH?field=body.
        directory: folder of the prepared corpora.
        vocabulary: "byte" or the path of a SentencePiece model.
        road: auto is seqio where it is installed, else plain; the shards are the same bytes.
        json: also write the same facts to this file.
    """
    done = prepare(name, directory, vocabulary, road)
    table = Table("split", "documents", "tokens", "bytes", "shards")
    for split, facts in done.meta["splits"].items():
        numbers = (facts["documents"], facts["tokens"], facts["bytes"], len(facts["shards"]))
        table.add_row(split, *(f"{number:,}" for number in numbers))
    console = Console()
    console.print(table)
    how = f"written in {done.seconds:.1f} s" if done.seconds else "already there"
    console.print(f"{done.meta['corpus']}: fingerprint {done.fingerprint}, {how}, {done.folder}", soft_wrap=True)
    if json:
        _write_json(json, {"folder": str(done.folder), **done.meta})


def data_list(directory: str = "out/corpora", json: Path | None = None) -> None:
    """List the kinds of corpora and what is prepared.

    Args:
        directory: folder of the prepared corpora.
        json: also write the same facts to this file.
    """
    console, kinds = Console(), Table("corpus", "what it is")
    for kind, corpus in CORPORA.items():
        kinds.add_row(kind, " ".join((corpus.__doc__ or "").split("\n\n")[0].split()))
    console.print(kinds)
    metas = [meta for path in sorted(Path(directory).glob("*/*/meta.json")) if (meta := read_meta(path.parent))]
    table = Table(Column("prepared", overflow="fold"), "vocabulary", "train tokens", "validation tokens")
    table.add_column("fingerprint", no_wrap=True, min_width=16)
    for meta in metas:
        sizes = (f"{meta['splits'][split]['tokens']:,}" for split in SPLITS)
        table.add_row(meta["corpus"], meta["vocabulary"], *sizes, meta["fingerprint"])
    console.print(table)
    if json:
        _write_json(json, metas)


def _write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")
