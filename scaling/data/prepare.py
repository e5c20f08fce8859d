"""Documents to token shards: one writer for both roads, the plain reader here and seqio in tasks.py.

Not in the design's list of modules: tokens.py is what training imports, to read; this writes.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.util
import io
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

from scaling.data.corpora import SPLITS, Corpus, Mixture, Seqio, SplitName, Stdlib, parse_corpus, parse_rates
from scaling.data.shards import SCHEMA, read_meta, shards_folder
from scaling.data.tokenizer import Tokenizer, load_tokenizer
from scaling.errors import InputError
from scaling.files import lock_file, replace_folder, write_json

SHARD_TOKENS = 1 << 26
VALIDATION_TOKENS = 1 << 20
TEMPORARY = ".writing-"
Backend = Literal["auto", "plain", "seqio"]


@dataclass(frozen=True)
class PreparedCorpus:
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
    backend: Backend = "auto",
    shard_tokens: int = SHARD_TOKENS,
) -> PreparedCorpus:
    """Writes the token shards of a corpus, unless they are there and their source has not changed since.

    backend: auto goes through seqio (a subprocess: TensorFlow) where that is installed. The shards are the same bytes.
    Raises InputError on an unknown or empty corpus, an unreadable source, a token out of vocabulary, a full disk.
    """
    folder = shards_folder(directory, name, vocabulary)
    corpus = parse_corpus(name)
    started = time.monotonic()
    if isinstance(corpus, Mixture) and read_meta(folder) is not None:
        return _prepared(folder)
    if current_meta(folder, corpus.source_hash()) is not None:
        return _prepared(folder)
    if isinstance(corpus, Seqio) or backend == "seqio" or (backend == "auto" and importlib.util.find_spec("seqio")):
        options = ["--directory", str(directory), "--vocabulary", vocabulary, "--shard-tokens", str(shard_tokens)]
        _by_seqio(corpus.name, ["prepare", name, *options])
    else:
        _prepare_plain(corpus, folder, load_tokenizer(vocabulary), shard_tokens)
    return _prepared(folder, time.monotonic() - started)


def prepare_mixture(
    name: str,
    parts: Iterable[str],
    directory: Path | str = "out/corpora",
    vocabulary: str = "byte",
    *,
    train_tokens: int,
    validation_tokens: int = VALIDATION_TOKENS,
) -> PreparedCorpus:
    """Writes the token shards of `mixture:NAME` from CORPUS=RATE parts, through seqio. Raises InputError as `prepare`
    does, and on a wrong part or size."""
    sizes = {"train_tokens": train_tokens, "validation_tokens": validation_tokens}
    for size, value in sizes.items():
        if value < 1:
            raise InputError(f"mixture {name!r}: {size} = {value}: must be at least 1")
    parts = [f"{corpus}={rate}" for corpus, rate in parse_rates(name, parts).items()]
    folder = shards_folder(directory, Mixture(name).name, vocabulary)
    options = [f"--{size.replace('_', '-')}={value}" for size, value in sizes.items()]
    if current_meta(folder, mixture_source_hash(parse_rates(name, parts), train_tokens, validation_tokens)) is not None:
        return _prepared(folder)
    started = time.monotonic()
    _by_seqio(
        f"mixture:{name}", ["mixture", name, *parts, *options, f"--directory={directory}", "--vocabulary", vocabulary]
    )
    return _prepared(folder, time.monotonic() - started)


def mixture_source_hash(rates: Mapping[str, float], train_tokens: int, validation_tokens: int) -> str:
    """What tells the shards of one mixture from another's of the same name: rates, sizes, sources of its corpora."""
    sizes = {"train": train_tokens, "validation": validation_tokens}
    recipe = [rates, sizes, [parse_corpus(part).source_hash() for part in rates]]
    return hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:16]


def _prepared(folder: Path, seconds: float = 0.0) -> PreparedCorpus:
    meta = read_meta(folder)
    assert meta is not None
    return PreparedCorpus(folder, meta, seconds)


def current_meta(folder: Path, source: str | None) -> dict[str, Any] | None:
    """meta.json of the shards in `folder` if they came from `source` (None: from any), else None."""
    meta = read_meta(folder)
    return meta if meta is not None and source in (None, meta["source"]) else None


def _prepare_plain(corpus: Corpus, folder: Path, vocabulary: Tokenizer, shard_tokens: int) -> None:
    columns = TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:

        def documents(split: SplitName) -> Iterator[np.ndarray]:
            task = progress.add_task(f"{corpus.name} {split} documents", total=None)
            for text in corpus.documents(split):
                yield np.append(vocabulary.encode(text), vocabulary.eos_id)
                progress.advance(task)

        write_shards(folder, corpus, vocabulary, {split: documents(split) for split in SPLITS}, shard_tokens)


def _by_seqio(corpus: str, arguments: list[str]) -> None:
    """Runs `python -m scaling.data.seqio_corpora ARGUMENTS`, unheard. Raises InputError with its last line when it
    fails."""
    if importlib.util.find_spec("seqio") is None:
        raise InputError(f"corpus {corpus!r} needs the package seqio: pip install 'scaling-laws[data]'")
    quiet = {
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "CUDA_VISIBLE_DEVICES": "-1",
        "JAX_PLATFORMS": "cpu",
        "PYTHONWARNINGS": "ignore",
    }
    command = [sys.executable, "-m", "scaling.data.seqio_corpora", *arguments]
    with Console(stderr=True).status(f"{corpus}: prepared through seqio"):
        done = subprocess.run(command, env={**os.environ, **quiet}, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"it ended with code {done.returncode}"])[-1]
        plain = "" if isinstance(parse_corpus(corpus), Mixture | Seqio) else "; try --backend plain"
        raise InputError(last if done.returncode == 2 else f"seqio could not prepare {corpus!r}: {last}{plain}")


def write_shards(
    folder: Path,
    corpus: Corpus,
    vocabulary: Tokenizer,
    documents: Mapping[SplitName, Iterable[np.ndarray]],
    shard_tokens: int = SHARD_TOKENS,
    source: str | None = None,
) -> None:
    """Writes documents (ids [n], end of document included) as shards of `shard_tokens`, and meta.json.

    Everything goes to a temporary folder that is renamed at the end: a killed writer leaves no half corpus. One writer
    at a time a directory; a second waits, and returns when the first has written the same. Raises InputError on a
    token out of vocabulary, a split without documents, a full disk.
    """
    source = corpus.source_hash() if source is None else source
    with _full_disk_told(folder), lock_file(folder.parent / ".lock"):
        if current_meta(folder, source) is not None:
            return
        for stale in folder.parent.glob(f"{TEMPORARY}*"):
            shutil.rmtree(stale)
        written = Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=folder.parent))
        try:
            meta = _write_all(written, corpus, vocabulary, documents, shard_tokens, source)
            write_json(written / "meta.json", meta)
            written.chmod(0o755)  # mkdtemp makes folders that only their owner may read
            replace_folder(written, folder)
        finally:
            shutil.rmtree(written, ignore_errors=True)


@contextlib.contextmanager
def _full_disk_told(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise InputError(
            f"{folder}: no space left on its disk, so nothing of it was kept; make room or name another --directory"
        ) from None


def _write_all(
    folder: Path,
    corpus: Corpus,
    vocabulary: Tokenizer,
    documents: Mapping[SplitName, Iterable[np.ndarray]],
    shard_tokens: int,
    source: str,
) -> dict[str, Any]:
    dtype = np.dtype("<u2" if vocabulary.size <= 1 << 16 else "<u4")
    digest = hashlib.sha256(f"{vocabulary.size} {vocabulary.eos_id} {dtype.str}".encode())
    digest.update(vocabulary.bytes_per_token.tobytes())
    np.save(table := io.BytesIO(), vocabulary.bytes_per_token)
    (folder / "bytes_per_token.npy").write_bytes(table.getvalue())  # numpy's own writing hides why it failed
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
        **({"skipped_files": corpus.count_skipped()} if isinstance(corpus, Stdlib) else {}),
    }


def _write_split(
    folder: Path,
    corpus: Corpus,
    split: SplitName,
    vocabulary: Tokenizer,
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


def _checked_max(ids: np.ndarray, corpus: Corpus, split: SplitName, number: int, vocabulary: Tokenizer) -> int:
    for worst in (int(ids.max()), int(ids.min())):
        if not 0 <= worst < vocabulary.size:
            raise InputError(
                f"corpus {corpus.name!r}, {split} document {number}: token {worst} is out of vocabulary "
                f"{vocabulary.slug!r}, which has {vocabulary.size} ids"
            )
    return int(ids.max())
