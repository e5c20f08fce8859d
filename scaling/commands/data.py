"""The verbs `scaling data prepare | mixture | vocabulary | list`.

Not in the design's list of modules: it keeps prepare.py to the writing of shards, as analysis/commands/fit.py does
for fits.
"""

from __future__ import annotations

import shlex
from itertools import islice
from pathlib import Path

from rich.console import Console
from rich.table import Column, Table

from scaling.data.corpora import CORPUS_KINDS, SPLITS, parse_corpus
from scaling.data.prepare import VALIDATION_TOKENS, Backend, PreparedCorpus, prepare, prepare_mixture
from scaling.data.shards import read_meta
from scaling.data.tokenizer import train_sentencepiece
from scaling.errors import InputError
from scaling.files import write_json


def data_prepare(
    name: str,
    /,
    directory: str = "out/corpora",
    vocabulary: str = "byte",
    backend: Backend = "auto",
    json: Path | None = None,
) -> None:
    """Write the token shards of a corpus, once; a second call finds them.

    Args:
        name: stdlib, walk, zipf, text:PATH, jsonl:PATH, parquet:PATH, hf:NAME, seqio:TASK?module=M; options as in
            jsonl:PATH?field=body.
        directory: folder of the prepared corpora.
        vocabulary: "byte" or the path of a SentencePiece model.
        backend: auto is seqio where it is installed, else plain; the shards are the same bytes.
        json: also write the same facts to this file.
    """
    done = prepare(name, directory, vocabulary, backend)
    _show(done, json)


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
    """Write the token shards of several corpora at stated rates, to be trained on as corpus mixture:NAME.

    Args:
        name: name of the mixture.
        parts: CORPUS=RATE ..., relative numbers of documents.
        train_tokens: size of its training split, rounded up to whole documents. Must be given.
        validation_tokens: size of its validation split, likewise.
        directory: folder of the prepared corpora.
        vocabulary: "byte" or the path of a SentencePiece model.
        json: also write the same facts to this file.
    """
    sizes = {"train_tokens": train_tokens, "validation_tokens": validation_tokens}
    _show(prepare_mixture(name, parts, directory, vocabulary, **sizes), json)


def data_vocabulary(
    corpus: str, /, size: int = 4096, path: Path | None = None, documents: int | None = None, json: Path | None = None
) -> None:
    """Train a SentencePiece model (BPE that loses no text) on the training split of a corpus.

    Args:
        corpus: name of a corpus, as in `scaling data prepare`.
        size: ids of the vocabulary, its 3 specials and 256 bytes included.
        path: the model; out/vocabularies/CORPUS-SIZE.model when not given. Trained again when it is there.
        documents: train on the first so many documents, and measure on as many; training holds its text in memory.
        json: also write the same facts to this file.
    """
    parsed = parse_corpus(corpus)
    if documents is not None and documents < 1:
        raise InputError(f"documents = {documents}: must be 1 or more")
    path = path or Path("out/vocabularies") / f"{parsed.slug}-{size}.model"
    console = Console()
    with Console(stderr=True).status(f"{parsed.name}: training a vocabulary of {size} ids"):
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


def data_list(directory: str = "out/corpora", json: Path | None = None) -> None:
    """List the kinds of corpora and what is prepared.

    Args:
        directory: folder of the prepared corpora.
        json: also write the same facts to this file.
    """
    console, kinds = Console(), Table("corpus", "what it is")
    for kind, corpus in CORPUS_KINDS.items():
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
        write_json(json, metas)


def _show(done: PreparedCorpus, json: Path | None) -> None:
    table = Table("split", "documents", "tokens", "bytes", "shards")
    for split, facts in done.meta["splits"].items():
        numbers = (facts["documents"], facts["tokens"], facts["bytes"], len(facts["shards"]))
        table.add_row(split, *(f"{number:,}" for number in numbers))
    console = Console()
    console.print(table)
    how = f"written in {done.seconds:.1f} s" if done.seconds else "already there"
    console.print(f"{done.meta['corpus']}: fingerprint {done.fingerprint}, {how}, {done.folder}", soft_wrap=True)
    if json:
        write_json(json, {"folder": str(done.folder), **done.meta})
