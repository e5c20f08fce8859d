"""The verbs `scaling data prepare | mixture | vocabulary | verify | list`."""

from __future__ import annotations

import shlex
import time
from itertools import islice
from pathlib import Path

from rich.table import Column, Table
from rich.text import Text

from scaling.data.corpora import CORPUS_KINDS, SPLITS, parse_corpus
from scaling.data.file_corpora import FileCorpus
from scaling.data.prepare import VALIDATION_TOKENS, Backend, PreparedCorpus, prepare, prepare_mixture
from scaling.data.shards import read_meta, shards_folder, verify_prepared
from scaling.data.tokenizer import train_sentencepiece
from scaling.data.verification import shard_files
from scaling.errors import InputError
from scaling.files import warn_once, write_json
from scaling.terminal import make_console


def data_prepare(
    name: str,
    /,
    directory: str = "out/corpora",
    vocabulary: str = "byte",
    backend: Backend = "auto",
    json: Path | None = None,
) -> None:
    """Write the token shards of a corpus. Where they are there already, print what they hold.

    Args:
        name: stdlib, walk, zipf, text:PATH, jsonl:PATH, parquet:PATH, hf:NAME or seqio:TASK?module=M; options as in
            jsonl:PATH?field=body. With ?skip_bad=true, documents that cannot be read are left out and counted.
        directory: folder of the prepared corpora.
        vocabulary: byte, or the path of a SentencePiece model.
        backend: plain or seqio, which reads the documents; auto takes seqio where it is installed. The shards are the
            same bytes.
        json: also write what is printed to this file.
    """
    _print_prepared(prepare(name, directory, vocabulary, backend), json)


def data_mixture(
    name: str,
    parts: tuple[str, ...],
    /,
    train_tokens: int = 0,
    validation_tokens: int = VALIDATION_TOKENS,
    directory: str = "out/corpora",
    vocabulary: str = "byte",
    json: Path | None = None,
) -> None:
    """Write the token shards of a mixture of corpora, which a run trains on as corpus mixture:NAME.

    Args:
        name: name of the mixture.
        parts: CORPUS=RATE ..., required: the corpora, and the relative numbers of documents that are drawn from them.
        train_tokens: required: tokens of the training split, rounded up to whole documents.
        validation_tokens: tokens of the validation split, rounded up to whole documents.
        directory: folder of the prepared corpora.
        vocabulary: byte, or the path of a SentencePiece model.
        json: also write what is printed to this file.
    """
    sizes = {"train_tokens": train_tokens, "validation_tokens": validation_tokens}
    _print_prepared(prepare_mixture(name, parts, directory, vocabulary, **sizes), json)


def data_vocabulary(
    corpus: str, /, size: int = 4096, path: Path | None = None, documents: int | None = None, json: Path | None = None
) -> None:
    """Train a SentencePiece tokenizer (BPE that falls back to bytes) on the training split of a corpus.

    Args:
        corpus: name of a corpus, as in `scaling data prepare`.
        size: ids of the vocabulary, its 3 special ids and 256 bytes included.
        path: file of the tokenizer; out/vocabularies/CORPUS-SIZE.model when not given. An old file is replaced.
        documents: train on the first so many documents, and measure compression on as many of the validation split; all
            when not given. The text that is trained on is held in memory.
        json: also write what is printed to this file.
    """
    parsed = parse_corpus(corpus)
    if documents is not None and documents < 1:
        raise InputError(f"documents = {documents}: must be 1 or more")
    path = path or Path("out/vocabularies") / f"{parsed.slug}-{size}.model"
    console = make_console()
    with make_console(stderr=True).status(Text(f"{parsed.name}: training a vocabulary of {size} ids")):
        model = train_sentencepiece(islice(parsed.documents("train"), documents), size, path)
        texts = islice(parsed.documents("validation"), documents)
        counts = [(len(text.encode()), len(model.encode(text))) for text in texts]
    text_bytes, tokens = (sum(column) for column in zip(*counts, strict=True)) if counts else (0, 0)
    if not tokens:
        raise InputError(f"corpus {parsed.name!r}: no text in the validation split, on which {path} would be measured")
    ratio = text_bytes / tokens
    measured = f"{text_bytes:,} bytes in {tokens:,} tokens of the validation split"
    console.print(f"{path}: {model.size} ids, {ratio:.3f} bytes per token ({measured})", soft_wrap=True)
    command = f"scaling data prepare {shlex.quote(corpus)} --vocabulary {shlex.quote(str(path))}"
    console.print(f"used by: {command}", soft_wrap=True)
    if json:
        facts = {"path": str(path), "vocabulary": model.slug, "size": model.size, "corpus": parsed.name}
        write_json(json, {**facts, "bytes": text_bytes, "tokens": tokens, "bytes_per_token": ratio, "command": command})


def data_verify(
    name: str, /, directory: str = "out/corpora", vocabulary: str = "byte", json: Path | None = None
) -> None:
    """Read all token shards of a prepared corpus, and verify that they are what was prepared.

    A run does the same where this machine has not verified the shards yet, or a size or time of a file has changed.

    Args:
        name: a prepared corpus, as in `scaling data prepare`.
        directory: folder of the prepared corpora.
        vocabulary: byte, or the path of a SentencePiece model.
        json: also write what is printed to this file.
    """
    started = time.monotonic()
    meta, size = verify_prepared(directory, name, vocabulary, again=True)
    facts = {
        "folder": str(shards_folder(directory, name, vocabulary)),
        "files": 1 + len(shard_files(meta)),
        "bytes": size,
    }
    make_console().print(
        f"{name}: {facts['files']} files, {size:,} bytes, are as prepared: fingerprint {meta['fingerprint']} "
        f"({time.monotonic() - started:.1f} s)",
        soft_wrap=True,
    )
    if json:
        write_json(json, {**facts, "fingerprint": meta["fingerprint"]})


def data_list(directory: str = "out/corpora", json: Path | None = None) -> None:
    """List the kinds of corpora, and the prepared ones.

    Args:
        directory: folder of the prepared corpora.
        json: also write the list of prepared corpora to this file.
    """
    console, kinds = make_console(), Table("corpus", "what it is")
    for kind, corpus in CORPUS_KINDS.items():
        kinds.add_row(kind, " ".join((corpus.__doc__ or "").split("\n\n")[0].split()))
    console.print(kinds)
    metas = []
    for path in sorted(Path(directory).glob("*/*/meta.json")):
        if path.parent.name.startswith("."):  # a folder that a killed process left unfinished
            continue
        try:
            metas += [meta for meta in (read_meta(path.parent),) if meta is not None]
        except InputError as error:
            warn_once(f"left out: {error}")
    table = Table(Column("prepared", overflow="fold"), "vocabulary", "train tokens", "validation tokens")
    table.add_column("fingerprint", no_wrap=True, min_width=16)
    for meta in metas:
        sizes = (f"{meta['splits'][split]['tokens']:,}" for split in SPLITS)
        table.add_row(meta["corpus"], meta["vocabulary"], *sizes, meta["fingerprint"])
    console.print(table)
    if json:
        write_json(json, metas)


def _print_prepared(prepared: PreparedCorpus, json: Path | None) -> None:
    """Prints a table of the splits of a prepared corpus, its fingerprint and its folder."""
    table = Table("split", "documents", "tokens", "bytes", "shards")
    for split, facts in prepared.meta["splits"].items():
        numbers = (facts["documents"], facts["tokens"], facts["bytes"], len(facts["shards"]))
        table.add_row(split, *(f"{number:,}" for number in numbers))
    console = make_console()
    console.print(table)
    how = f"written in {prepared.seconds:.1f} s" if prepared.seconds else "already there"
    fingerprint = f"fingerprint {prepared.fingerprint}"
    console.print(f"{prepared.meta['corpus']}: {fingerprint}, {how}, {prepared.folder}", soft_wrap=True)
    corpus = parse_corpus(prepared.meta["corpus"])
    if isinstance(corpus, FileCorpus) and (unread := corpus.unread_files()):
        console.print(
            f"not read: {len(unread)} more files of the folder, the first {unread[0]}; name them with a glob",
            soft_wrap=True,
        )
    if skipped := prepared.meta.get("skipped_documents"):
        console.print(f"left out {skipped} document{'s' * (skipped > 1)} that cannot be read:", soft_wrap=True)
        for reason in prepared.meta["skipped_first"]:
            console.print(f"  {reason}", soft_wrap=True)
        if skipped > len(prepared.meta["skipped_first"]):
            console.print("  ...")
    if json:
        write_json(json, {"folder": str(prepared.folder), **prepared.meta})
