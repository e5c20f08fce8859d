"""Writes a corpus as token shards, which shards.py reads: `scaling data prepare` and `scaling data mixture`.

Two backends yield the tokenized documents, the plain one here and seqio (seqio_corpora.py, in a subprocess);
`write_shards` writes them, so that both produce the same bytes.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.util
import io
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from scaling.data.corpora import SPLITS, Corpus, Mixture, Seqio, SplitName, Stdlib, parse_corpus, parse_rates
from scaling.data.file_corpora import UserCorpus
from scaling.data.shards import SCHEMA, read_meta, shards_folder, verify_prepared
from scaling.data.tokenizer import Tokenizer, load_tokenizer
from scaling.data.verification import META, TABLE, compute_checksums, record_verified
from scaling.errors import InputError
from scaling.files import REPLACED_PREFIX, lock_file, replace_folder, write_json
from scaling.terminal import make_console

SHARD_TOKENS = 1 << 26
"""Tokens in a shard; the last shard of a split is shorter."""
VALIDATION_TOKENS = 1 << 20
"""Size of a mixture's validation split."""
SKIPPED_SHOWN = 10
"""So many of the documents that were left out are named."""
TEMPORARY_PREFIX = ".writing-"
"""Begins the name of a folder that is not written completely."""
Backend = Literal["auto", "plain", "seqio"]


@dataclass(frozen=True)
class PreparedCorpus:
    """A corpus on disk. meta: the contents of meta.json. seconds: what writing it took; 0 when it was there already."""

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
    """Writes the token shards of a corpus, unless they exist and their source has not changed since.

    name: as `parse_corpus` reads it. vocabulary: "byte" or the path of a SentencePiece model. backend: auto is seqio
    (in a subprocess, because it imports TensorFlow) when that is installed, else plain; both write the same bytes.
    Raises InputError on an unknown or empty corpus, an unreadable source, an id that the tokenizer lacks, a full disk.
    """
    folder = shards_folder(directory, name, vocabulary)
    corpus = parse_corpus(name)
    started = time.monotonic()
    if isinstance(corpus, Mixture) and read_meta(folder) is not None:
        return _open_prepared(directory, name, vocabulary)
    if current_meta(folder, corpus.source_hash()) is not None:
        return _open_prepared(directory, name, vocabulary)
    if isinstance(corpus, Seqio) or backend == "seqio" or (backend == "auto" and importlib.util.find_spec("seqio")):
        options = ["--directory", str(directory), "--vocabulary", vocabulary, "--shard-tokens", str(shard_tokens)]
        _run_seqio(corpus.name, ["prepare", name, *options])
    else:
        _prepare_plain(corpus, folder, load_tokenizer(vocabulary), shard_tokens)
    return _open_prepared(directory, name, vocabulary, time.monotonic() - started)


def prepare_mixture(
    name: str,
    parts: Iterable[str],
    directory: Path | str = "out/corpora",
    vocabulary: str = "byte",
    *,
    train_tokens: int,
    validation_tokens: int = VALIDATION_TOKENS,
) -> PreparedCorpus:
    """Writes the token shards of `mixture:NAME` through seqio.

    parts: CORPUS=RATE; the rates are relative numbers of documents. train_tokens, validation_tokens: sizes of the
    splits, rounded up to whole documents. Raises InputError as `prepare` does, and on a wrong part or size.
    """
    sizes = {"train_tokens": train_tokens, "validation_tokens": validation_tokens}
    for size, value in sizes.items():
        if value < 1:
            raise InputError(
                f"mixture {name!r}: {size} = {value}: must be at least 1; give --{size.replace('_', '-')} N"
            )
    parts = [f"{corpus}={rate}" for corpus, rate in parse_rates(name, parts).items()]
    corpus = Mixture(name).name
    folder = shards_folder(directory, corpus, vocabulary)
    options = [f"--{size.replace('_', '-')}={value}" for size, value in sizes.items()]
    if current_meta(folder, mixture_source_hash(parse_rates(name, parts), train_tokens, validation_tokens)) is not None:
        return _open_prepared(directory, corpus, vocabulary)
    started = time.monotonic()
    _run_seqio(corpus, ["mixture", name, *parts, *options, f"--directory={directory}", "--vocabulary", vocabulary])
    return _open_prepared(directory, corpus, vocabulary, time.monotonic() - started)


def mixture_source_hash(rates: Mapping[str, float], train_tokens: int, validation_tokens: int) -> str:
    """Hash of a mixture's rates, sizes and the sources of its corpora, 16 hex digits. When it changes,
    `prepare_mixture` writes the shards again."""
    sizes = {"train": train_tokens, "validation": validation_tokens}
    recipe = [rates, sizes, [parse_corpus(part).source_hash() for part in rates]]
    return hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:16]


def _open_prepared(directory: Path | str, corpus: str, vocabulary: str, seconds: float = 0.0) -> PreparedCorpus:
    """The shards of a corpus, verified. Removes what killed writers left beside them, unless a process writes there."""
    folder = shards_folder(directory, corpus, vocabulary)
    meta, _ = verify_prepared(directory, corpus, vocabulary)
    if _leftovers(folder):
        with contextlib.suppress(PermissionError), lock_file(folder.parent / ".lock", wait=False) as is_ours:
            for leftover in _leftovers(folder) if is_ours else ():
                shutil.rmtree(leftover, ignore_errors=True)
    return PreparedCorpus(folder, meta, seconds)


def _leftovers(folder: Path) -> list[Path]:
    """Folders beside `folder` that a writer which was killed left behind, if no process holds the lock."""
    return [path for prefix in (TEMPORARY_PREFIX, REPLACED_PREFIX) for path in folder.parent.glob(f"{prefix}*")]


def current_meta(folder: Path, source: str | None) -> dict[str, Any] | None:
    """meta.json of the shards in `folder` if they were written from the source with this hash (None: from any), else
    None."""
    meta = read_meta(folder)
    return meta if meta is not None and source in (None, meta["source"]) else None


def _prepare_plain(corpus: Corpus, folder: Path, tokenizer: Tokenizer, shard_tokens: int) -> None:
    """Tokenizes and writes a corpus in this process, with a progress bar on standard error."""
    columns = TextColumn("{task.description}", markup=False), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=make_console(stderr=True), transient=True) as progress:

        def documents(split: SplitName) -> Iterator[np.ndarray]:
            task = progress.add_task(f"{corpus.name} {split} documents", total=None)
            for text in corpus.documents(split):
                yield np.append(tokenizer.encode(text), tokenizer.eos_id)
                progress.advance(task)

        write_shards(folder, corpus, tokenizer, {split: documents(split) for split in SPLITS}, shard_tokens)


def _run_seqio(corpus: str, arguments: list[str]) -> None:
    """Runs `python -m scaling.data.seqio_corpora ARGUMENTS` and hides its output. Raises InputError with its last line
    when it fails."""
    if importlib.util.find_spec("seqio") is None:
        raise InputError(f"corpus {corpus!r} needs the package seqio: pip install 'scaling-laws[data]'")
    environment = {
        **os.environ,
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "CUDA_VISIBLE_DEVICES": "-1",
        "JAX_PLATFORMS": "cpu",
        "PYTHONWARNINGS": "ignore",
    }
    command = [sys.executable, "-m", "scaling.data.seqio_corpora", *arguments]
    with make_console(stderr=True).status(Text(f"{corpus}: preparing through seqio")):
        process = subprocess.run(command, env=environment, capture_output=True, text=True)
    if process.returncode:
        last_line = (process.stderr.strip().splitlines() or [f"exit code {process.returncode}"])[-1]
        hint = "" if isinstance(parse_corpus(corpus), Mixture | Seqio) else "; try --backend plain"
        if process.returncode == 2:  # the last line is an InputError's own message
            raise InputError(last_line)
        raise InputError(f"corpus {corpus!r}: seqio failed: {last_line}{hint}")


def write_shards(
    folder: Path,
    corpus: Corpus,
    tokenizer: Tokenizer,
    documents: Mapping[SplitName, Iterable[np.ndarray]],
    shard_tokens: int = SHARD_TOKENS,
    source: str | None = None,
    parts: Sequence[Corpus] = (),
) -> None:
    """Writes tokenized documents as shards of `shard_tokens` tokens, and meta.json.

    documents: ids [n] of each document of a split, end of document included. source: hash of where they come from; by
    default `corpus.source_hash()`. parts: the corpora of a mixture, whose skipped documents meta.json counts.

    Everything goes into a temporary folder, which is renamed at the end, so that a killed writer leaves no partial
    corpus. A lock admits one writer for each corpus folder; a second one waits, and returns when the first has written
    the same. Raises InputError on an id that the tokenizer lacks, a split without documents, a full disk.
    """
    source = corpus.source_hash() if source is None else source
    with _full_disk_as_input_error(folder), lock_file(folder.parent / ".lock"):
        if current_meta(folder, source) is not None:
            return
        for leftover in _leftovers(folder):
            shutil.rmtree(leftover)
        temporary = Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX, dir=folder.parent))
        try:
            meta = _write_splits(temporary, corpus, tokenizer, documents, shard_tokens, source)
            meta |= _skipped_documents(parts or [corpus])
            meta["checksums"] = compute_checksums(temporary, meta)
            write_json(temporary / META, meta)
            temporary.chmod(0o755)  # mkdtemp gives 0o700, which would shut other users out
            replace_folder(temporary, folder)
            record_verified(folder, meta)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def _full_disk_as_input_error(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise InputError(
            f"{folder}: no space left on its disk, and nothing was kept; free some, or give another --directory"
        ) from None


def _write_splits(
    folder: Path,
    corpus: Corpus,
    tokenizer: Tokenizer,
    documents: Mapping[SplitName, Iterable[np.ndarray]],
    shard_tokens: int,
    source: str,
) -> dict[str, Any]:
    """Writes all shards and the table bytes_per_token.npy, and returns the contents of meta.json.

    The fingerprint in it is a hash of the tokenizer's table and of all tokens, but not of how they are cut into shards.
    """
    dtype = np.dtype("<u2" if tokenizer.size <= 1 << 16 else "<u4")
    digest = hashlib.sha256(f"{tokenizer.size} {tokenizer.eos_id} {dtype.str}".encode())
    digest.update(tokenizer.bytes_per_token.tobytes())
    np.save(table := io.BytesIO(), tokenizer.bytes_per_token)
    (folder / TABLE).write_bytes(table.getvalue())  # np.save to a path hides why it failed
    splits = {}
    for split in SPLITS:
        digest.update(split.encode())
        splits[split] = _write_split(folder, corpus, split, tokenizer, documents[split], shard_tokens, dtype, digest)
    return {
        "schema": SCHEMA,
        "corpus": corpus.name,
        "vocabulary": tokenizer.slug,
        "vocab_size": tokenizer.size,
        "eos_id": tokenizer.eos_id,
        "dtype": dtype.str,
        "shard_tokens": shard_tokens,
        "source": source,
        "splits": splits,
        "fingerprint": digest.hexdigest()[:16],
        **({"skipped_files": corpus.count_skipped()} if isinstance(corpus, Stdlib) else {}),
    }


def _skipped_documents(corpora: Iterable[Corpus]) -> dict[str, Any]:
    """For meta.json: how many documents `skip_bad` left out, and where and why the first ones."""
    skipping = [corpus for corpus in corpora if isinstance(corpus, UserCorpus) and corpus.skip_bad]
    count, first = 0, []
    for reason in itertools.chain.from_iterable(corpus.skipped() for corpus in skipping):
        count += 1
        first += [reason] * (count <= SKIPPED_SHOWN)
    return {"skipped_documents": count, "skipped_first": first} if skipping else {}


def _write_split(
    folder: Path,
    corpus: Corpus,
    split: SplitName,
    tokenizer: Tokenizer,
    documents: Iterable[np.ndarray],
    shard_tokens: int,
    dtype: np.dtype,
    digest: Any,
) -> dict[str, Any]:
    """Writes the shards of a split, updates the hash `digest`, and returns the split's entry in meta.json."""
    shards: list[str] = []
    facts = {"tokens": 0, "documents": 0, "bytes": 0, "max_id": 0}
    with contextlib.ExitStack() as open_shard:
        file: Any = None
        for ids in documents:
            facts["max_id"] = max(facts["max_id"], _checked_max_id(ids, corpus, split, facts["documents"], tokenizer))
            facts["documents"] += 1
            facts["bytes"] += int(tokenizer.bytes_per_token[ids].sum())
            while len(ids):  # a document that does not fit into the open shard goes on in the next one
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
        raise _empty_split(corpus, split)
    return {"shards": shards, **facts}


def _empty_split(corpus: Corpus, split: SplitName) -> InputError:
    """The error of a split without documents, with their number and what to do where that can be told."""
    label = f"corpus {corpus.name!r}: its {split} split is empty: each split needs a document"
    if not isinstance(corpus, UserCorpus):
        return InputError(f"{label}; add some")
    count, skipped = sum(1 for _ in corpus.read_documents()), _skipped_documents([corpus])
    what = f"has {count} document{'s, all equal' * (count > 1)}" if count else "has no document"
    if skipped.get("skipped_documents"):
        what += f" but {skipped['skipped_documents']} that were left out, the first: {skipped['skipped_first'][0]}"
    return InputError(f"{label}, and the corpus {what}; {corpus.advice_to_split()}")


def _checked_max_id(ids: np.ndarray, corpus: Corpus, split: SplitName, number: int, tokenizer: Tokenizer) -> int:
    """The largest of the ids of document `number`. Raises InputError on an id that the tokenizer lacks."""
    for token in (int(ids.max()), int(ids.min())):
        if not 0 <= token < tokenizer.size:
            raise InputError(
                f"corpus {corpus.name!r}, {split} document {number}: token {token}: must be in the tokenizer "
                f"{tokenizer.slug!r}, which has {tokenizer.size} ids; give the corpus's own with --vocabulary"
            )
    return int(ids.max())
