"""seqio: every corpus as a Task, mixtures at stated rates, and any of them into the shards that training reads.

Importing this module imports TensorFlow: `scaling.data.prepare` runs it as a subprocess, and training never does.
Nothing is shuffled, trimmed or dropped, so that the shards are those of the plain reader, byte for byte.
"""

from __future__ import annotations

import functools
import importlib
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import seqio
import tensorflow as tf
import tyro

from scaling.data.corpora import SPLITS, Corpus, Mixture, Seqio, SplitName, parse_corpus, parse_rates
from scaling.data.prepare import SHARD_TOKENS, VALIDATION_TOKENS, current_meta, mixture_source_hash, write_shards
from scaling.data.shards import shards_folder
from scaling.data.tokenizer import SPACE_SYMBOL, SentencePieceTokenizer, Tokenizer, load_tokenizer
from scaling.errors import InputError, suggest_name

FEATURE = "targets"
_failures: list[InputError] = []


class LosslessSentencePiece(seqio.SentencePieceVocabulary):
    """seqio's vocabulary, with a literal U+2581 spelt as its three bytes, as in `SentencePieceVocabulary`."""

    def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
        parts = self.tf_tokenizer.tokenize(tf.strings.split(s, SPACE_SYMBOL))
        spelt = [self.tokenizer.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE_SYMBOL.encode()]
        marks = tf.repeat(tf.constant([spelt], parts.dtype), parts.nrows(), axis=0)
        return tf.concat([parts, marks], axis=1).values[: -len(spelt)]


def to_seqio_vocabulary(vocabulary: Tokenizer) -> seqio.Vocabulary:
    """The seqio vocabulary of the same ids."""
    if isinstance(vocabulary, SentencePieceTokenizer):
        return LosslessSentencePiece(vocabulary.name)
    return seqio.ByteVocabulary()


def register_task(name: str, vocabulary: str = "byte") -> seqio.Task:
    """Registers a corpus as a seqio Task, once; its feature is `targets`, end of document included."""
    corpus, loaded = parse_corpus(name), load_tokenizer(vocabulary)
    registered = _identifier(f"{corpus.slug}.{loaded.slug}")
    if registered in seqio.TaskRegistry.names():
        return seqio.TaskRegistry.get(registered)
    source: Any = seqio.FunctionDataSource(functools.partial(_dataset, corpus), splits=SPLITS)
    return seqio.TaskRegistry.add(
        registered,
        source=source,
        preprocessors=[
            functools.partial(seqio.preprocessors.tokenize, copy_pretokenized=False),
            seqio.preprocessors.append_eos,
        ],
        output_features={FEATURE: seqio.Feature(to_seqio_vocabulary(loaded), add_eos=True, dtype=tf.int32)},
    )


def register_mixture(name: str, rates: dict[str, float], vocabulary: str = "byte") -> seqio.Mixture:
    """Registers a seqio Mixture of corpora; rates are relative numbers of documents.

    Raises InputError on a rate that is not above 0.
    """
    for corpus, rate in rates.items():
        if not rate > 0:
            raise InputError(f"mixture {name!r}: rate of {corpus!r} is {rate}, must be more than 0")
    tasks = [(register_task(corpus, vocabulary), rate) for corpus, rate in rates.items()]
    return seqio.MixtureRegistry.add(_identifier(name), tasks)


def _identifier(name: str) -> str:
    return re.sub(r"[^\w.:#]", "_", name)


def _dataset(corpus: Corpus, split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
    def examples() -> Iterator[dict[str, bytes]]:
        try:
            for text in corpus.documents("train" if split == "train" else "validation"):
                yield {FEATURE: text.encode("utf-8")}
        except InputError as error:
            _failures.append(error)
            raise

    return tf.data.Dataset.from_generator(examples, output_signature={FEATURE: tf.TensorSpec((), tf.string)})


def read_documents(provider: seqio.Task | seqio.Mixture, split: SplitName) -> Iterator[np.ndarray]:
    """int32 [n] ids of each document, end of document included, in the corpus's own order.

    A Mixture samples documents at its rates, the same every time, and repeats its tasks without end.
    Raises InputError where the corpus does, instead of TensorFlow's wrapping of it.
    """
    epochs = None if isinstance(provider, seqio.Mixture) else 1
    dataset = provider.get_dataset(sequence_length=None, split=split, shuffle=False, num_epochs=epochs)
    _failures.clear()
    try:
        for example in dataset.as_numpy_iterator():
            yield example[FEATURE]
    except tf.errors.OpError:
        if _failures:
            raise _failures[0] from None
        raise


def user_task(corpus: Seqio, vocabulary: Tokenizer) -> seqio.Task | seqio.Mixture:
    """The Task or Mixture that the user's module registers.

    Raises InputError when the module or the name is unknown, a split is missing, or the feature is absent, no sequence
    of ids, or in another vocabulary.
    """
    provider = load_registered(f"corpus {corpus.name!r}", corpus.module, corpus.path)
    for split in SPLITS:
        if split not in (provider.splits or ()):
            raise InputError(
                f"corpus {corpus.name!r}: has no {split} split (both are needed); it has {', '.join(provider.splits)}"
            )
    features = provider.output_features
    if corpus.feature not in features:
        raise InputError(
            f"corpus {corpus.name!r}: no feature {corpus.feature!r}{suggest_name(corpus.feature, features)}"
        )
    feature = features[corpus.feature]
    if feature.rank != 1 or not tf.as_dtype(feature.dtype).is_integer:
        raise InputError(f"corpus {corpus.name!r}: feature {corpus.feature!r} is no sequence of ids")
    if not has_same_ids(feature.vocabulary, to_seqio_vocabulary(vocabulary)):
        raise InputError(
            f"corpus {corpus.name!r}: feature {corpus.feature!r} is in {feature.vocabulary!r}, "
            f"which is not the vocabulary {vocabulary.name!r}; name its own with --vocabulary"
        )
    return provider


def load_registered(label: str, module: str, name: str) -> seqio.Task | seqio.Mixture:
    """The Task or Mixture of this name that a module registers. Raises InputError, beginning with `label`, when the
    module cannot be imported or the name is unknown."""
    try:
        importlib.import_module(module)
    except Exception as error:
        raise InputError(
            f"{label}: module {module!r} cannot be imported: {type(error).__name__}, {' '.join(str(error).split())}"
        ) from None
    names = [*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()]
    if name not in names:
        raise InputError(f"{label}: {module} registers no such Task or Mixture{suggest_name(name, names)}")
    return seqio.get_mixture_or_task(name)


def has_same_ids(one: seqio.Vocabulary, other: seqio.Vocabulary) -> bool:
    """Whether both write the same text in the same ids."""
    if (one.vocab_size, one.eos_id) != (other.vocab_size, other.eos_id):
        return False
    if isinstance(one, seqio.SentencePieceVocabulary) and isinstance(other, seqio.SentencePieceVocabulary):
        return one.sp_model == other.sp_model
    return isinstance(one, seqio.ByteVocabulary) and isinstance(other, seqio.ByteVocabulary)


def read_user_documents(
    provider: seqio.Task | seqio.Mixture, split: SplitName, feature: str, eos_id: int
) -> Iterator[np.ndarray]:
    """int [n] ids of the feature of each example, in order, with an end of document where it has none."""
    dataset = provider.get_dataset(sequence_length=None, split=split, shuffle=False, seed=0, num_epochs=1)
    for example in dataset.as_numpy_iterator():
        ids = example[feature]
        yield ids if len(ids) and ids[-1] == eos_id else np.append(ids, eos_id)


def pack_windows(provider: seqio.Task | seqio.Mixture, split: SplitName, sequence_length: int) -> tf.data.Dataset:
    """Packing by tf.data: documents end to end, cut every T tokens into windows [T+1], the rest dropped."""
    dataset = provider.get_dataset(sequence_length=None, split=split, shuffle=False, num_epochs=1)
    stream = dataset.flat_map(lambda example: tf.data.Dataset.from_tensor_slices(example[FEATURE]))
    cut = stream.window(sequence_length + 1, shift=sequence_length, drop_remainder=True)
    return cut.flat_map(lambda window: window.batch(sequence_length + 1))


def write_task_shards(name: str, directory: Path | str, vocabulary: str, shard_tokens: int = SHARD_TOKENS) -> Path:
    """Writes the shards of a corpus from its Task, or of the user's own Task or Mixture. Raises InputError as the plain
    reader and `theirs` do."""
    corpus, loaded = parse_corpus(name), load_tokenizer(vocabulary)
    folder = shards_folder(directory, name, vocabulary)
    if isinstance(corpus, Seqio):
        provider = user_task(corpus, loaded)
        streams = {split: read_user_documents(provider, split, corpus.feature, loaded.eos_id) for split in SPLITS}
    else:
        streams = {split: read_documents(register_task(name, vocabulary), split) for split in SPLITS}
    write_shards(folder, corpus, loaded, streams, shard_tokens)
    return folder


def write_mixture_shards(
    name: str,
    rates: dict[str, float],
    directory: Path | str,
    vocabulary: str = "byte",
    *,
    train_tokens: int,
    validation_tokens: int,
    shard_tokens: int = SHARD_TOKENS,
) -> Path:
    """Writes whole documents, drawn at these rates, until each split has at least so many tokens; prepared again only
    when rates, sizes or sources change. Training then names the corpus `mixture:NAME`."""
    corpus = Mixture(name)
    sizes: dict[SplitName, int] = {"train": train_tokens, "validation": validation_tokens}
    source = mixture_source_hash(rates, train_tokens, validation_tokens)
    folder = shards_folder(directory, corpus.name, vocabulary)
    if current_meta(folder, source) is None:
        mixed = register_mixture(f"{name}.{source}", rates, vocabulary)
        streams = {split: _until(read_documents(mixed, split), size) for split, size in sizes.items()}
        write_shards(folder, corpus, load_tokenizer(vocabulary), streams, shard_tokens, source)
    return folder


def _until(stream: Iterable[np.ndarray], tokens: int) -> Iterator[np.ndarray]:
    for ids in stream:
        if tokens <= 0:
            return
        tokens -= len(ids)
        yield ids


app = tyro.extras.SubcommandApp()


@app.command(name="prepare")
def _prepare(
    name: tyro.conf.Positional[str],
    directory: str = "out/corpora",
    vocabulary: str = "byte",
    shard_tokens: int = SHARD_TOKENS,
) -> None:
    """Write the shards of a corpus through its seqio Task.

    Args:
        name: name of a corpus.
        directory: folder of the prepared corpora.
        vocabulary: "byte" or the path of a SentencePiece model.
        shard_tokens: tokens in a shard.
    """
    print(write_task_shards(name, directory, vocabulary, shard_tokens))


@app.command(name="mixture")
def _mixture(
    name: tyro.conf.Positional[str],
    parts: tyro.conf.Positional[tuple[str, ...]],
    train_tokens: int,
    validation_tokens: int = VALIDATION_TOKENS,
    directory: str = "out/corpora",
    vocabulary: str = "byte",
) -> None:
    """Write the shards of a mixture, to be trained on as corpus mixture:NAME.

    Args:
        name: name of the mixture.
        parts: CORPUS=RATE, relative numbers of documents.
        train_tokens: size of its training split, rounded up to whole documents.
        validation_tokens: size of its validation split, likewise.
        directory: folder of the prepared corpora.
        vocabulary: "byte" or the path of a SentencePiece model.
    """
    sizes = {"train_tokens": train_tokens, "validation_tokens": validation_tokens}
    print(write_mixture_shards(name, parse_rates(name, parts), directory, vocabulary, **sizes))


if __name__ == "__main__":
    try:
        app.cli(prog="python -m scaling.data.seqio_corpora", description=__doc__)
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
