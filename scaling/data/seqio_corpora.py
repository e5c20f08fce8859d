"""The seqio backend of `scaling data prepare` and `scaling data mixture`: corpora as seqio Tasks and Mixtures.

Importing this module imports TensorFlow, hence prepare.py runs it as a subprocess and training never imports it.
Nothing is shuffled, trimmed or dropped, so that the shards equal those of the plain backend, byte for byte.
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
from scaling.terminal import printable

FEATURE = "targets"
_corpus_errors: list[InputError] = []
"""InputErrors that corpora raised inside TensorFlow, which wraps them in errors of its own."""


class LosslessSentencePiece(seqio.SentencePieceVocabulary):
    """seqio's vocabulary, but with a literal U+2581 encoded as its three bytes, as `SentencePieceTokenizer` does."""

    def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
        parts = self.tf_tokenizer.tokenize(tf.strings.split(s, SPACE_SYMBOL))
        # Encode the parts between literal U+2581, append the ids of its three bytes to each, and drop the last three.
        mark_ids = [self.tokenizer.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE_SYMBOL.encode()]
        marks = tf.repeat(tf.constant([mark_ids], parts.dtype), parts.nrows(), axis=0)
        return tf.concat([parts, marks], axis=1).values[: -len(mark_ids)]


def to_seqio_vocabulary(tokenizer: Tokenizer) -> seqio.Vocabulary:
    """The seqio vocabulary with the same ids."""
    if isinstance(tokenizer, SentencePieceTokenizer):
        return LosslessSentencePiece(tokenizer.name)
    return seqio.ByteVocabulary()


def register_task(name: str, vocabulary: str = "byte") -> seqio.Task:
    """Registers a corpus as a seqio Task, unless it is registered. Its feature is `targets`: the ids of a document, end
    of document included."""
    corpus, tokenizer = parse_corpus(name), load_tokenizer(vocabulary)
    task_name = _identifier(f"{corpus.slug}.{tokenizer.slug}")
    if task_name in seqio.TaskRegistry.names():
        return seqio.TaskRegistry.get(task_name)
    source: Any = seqio.FunctionDataSource(functools.partial(_dataset, corpus), splits=SPLITS)
    return seqio.TaskRegistry.add(
        task_name,
        source=source,
        preprocessors=[
            functools.partial(seqio.preprocessors.tokenize, copy_pretokenized=False),
            seqio.preprocessors.append_eos,
        ],
        output_features={FEATURE: seqio.Feature(to_seqio_vocabulary(tokenizer), add_eos=True, dtype=tf.int32)},
    )


def register_mixture(name: str, rates: dict[str, float], vocabulary: str = "byte") -> seqio.Mixture:
    """Registers a seqio Mixture of corpora; rates are relative numbers of documents.

    Raises InputError on a rate that is not above 0.
    """
    for corpus, rate in rates.items():
        if not rate > 0:
            raise InputError(f"mixture {name!r}: rate of {corpus!r} = {rate}: must be more than 0")
    tasks = [(register_task(corpus, vocabulary), rate) for corpus, rate in rates.items()]
    return seqio.MixtureRegistry.add(_identifier(name), tasks)


def _identifier(name: str) -> str:
    """A name with only the characters that seqio allows in one."""
    return re.sub(r"[^\w.:#]", "_", name)


def _dataset(corpus: Corpus, split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
    def examples() -> Iterator[dict[str, bytes]]:
        try:
            for text in corpus.documents("train" if split == "train" else "validation"):
                yield {FEATURE: text.encode("utf-8")}
        except InputError as error:
            _corpus_errors.append(error)
            raise

    return tf.data.Dataset.from_generator(examples, output_signature={FEATURE: tf.TensorSpec((), tf.string)})


def read_task_documents(provider: seqio.Task | seqio.Mixture, split: SplitName) -> Iterator[np.ndarray]:
    """Yields the ids of each document, int32 [n], end of document included, in the corpus's own order.

    A Mixture samples documents at its rates, the same ones every time, and repeats its tasks without end. Raises the
    InputError that the corpus raised, in place of TensorFlow's error around it.
    """
    epochs = None if isinstance(provider, seqio.Mixture) else 1
    dataset = provider.get_dataset(sequence_length=None, split=split, shuffle=False, num_epochs=epochs)
    _corpus_errors.clear()
    try:
        for example in dataset.as_numpy_iterator():
            yield example[FEATURE]
    except tf.errors.OpError:
        if _corpus_errors:
            raise _corpus_errors[0] from None
        raise


def user_task(corpus: Seqio, tokenizer: Tokenizer) -> seqio.Task | seqio.Mixture:
    """The Task or Mixture that the user's module registers.

    Raises InputError when the module or the name is unknown, a split is missing, or the feature is absent, is not a
    sequence of ids, or has other ids than `tokenizer`.
    """
    provider = load_registered(f"corpus {corpus.name!r}", corpus.module, corpus.path)
    for split in SPLITS:
        if split not in (provider.splits or ()):
            raise InputError(
                f"corpus {corpus.name!r}: has no {split} split; it has {', '.join(provider.splits)}: must have both "
                "train and validation"
            )
    features = provider.output_features
    if corpus.feature not in features:
        raise InputError(
            f"corpus {corpus.name!r}: no feature {corpus.feature!r}{suggest_name(corpus.feature, features)}"
        )
    feature = features[corpus.feature]
    if feature.rank != 1 or not tf.as_dtype(feature.dtype).is_integer:
        raise InputError(f"corpus {corpus.name!r}: feature {corpus.feature!r}: must be a sequence of ids; name another")
    if not has_same_ids(feature.vocabulary, to_seqio_vocabulary(tokenizer)):
        raise InputError(
            f"corpus {corpus.name!r}: feature {corpus.feature!r} has the vocabulary {feature.vocabulary!r}, "
            f"not {tokenizer.name!r}; give its own with --vocabulary"
        )
    return provider


def load_registered(label: str, module: str, name: str) -> seqio.Task | seqio.Mixture:
    """The Task or Mixture with this name, after importing the module that registers it.

    Raises InputError, whose message begins with `label`, when the module cannot be imported or the name is unknown.
    """
    try:
        importlib.import_module(module)
    except Exception as error:
        raise InputError(
            f"{label}: module {module!r} cannot be imported: {type(error).__name__}, {' '.join(str(error).split())}"
        ) from None
    names = [*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()]
    if name not in names:
        raise InputError(f"{label}: {module} registers no Task or Mixture {name!r}{suggest_name(name, names)}")
    return seqio.get_mixture_or_task(name)


def has_same_ids(one: seqio.Vocabulary, other: seqio.Vocabulary) -> bool:
    """Whether both encode every text as the same ids."""
    if (one.vocab_size, one.eos_id) != (other.vocab_size, other.eos_id):
        return False
    if isinstance(one, seqio.SentencePieceVocabulary) and isinstance(other, seqio.SentencePieceVocabulary):
        return one.sp_model == other.sp_model
    return isinstance(one, seqio.ByteVocabulary) and isinstance(other, seqio.ByteVocabulary)


def read_user_documents(
    provider: seqio.Task | seqio.Mixture, split: SplitName, feature: str, eos_id: int
) -> Iterator[np.ndarray]:
    """Yields the ids of a feature of each example, int [n], in order, and appends an end of document where none is."""
    dataset = provider.get_dataset(sequence_length=None, split=split, shuffle=False, seed=0, num_epochs=1)
    for example in dataset.as_numpy_iterator():
        ids = example[feature]
        yield ids if len(ids) and ids[-1] == eos_id else np.append(ids, eos_id)


def pack_windows(provider: seqio.Task | seqio.Mixture, split: SplitName, sequence_length: int) -> tf.data.Dataset:
    """The windows of shards.py, cut by tf.data for tests to compare: documents end to end, cut every T tokens into
    windows [T+1]; the rest is dropped."""
    dataset = provider.get_dataset(sequence_length=None, split=split, shuffle=False, num_epochs=1)
    stream = dataset.flat_map(lambda example: tf.data.Dataset.from_tensor_slices(example[FEATURE]))
    cut = stream.window(sequence_length + 1, shift=sequence_length, drop_remainder=True)
    return cut.flat_map(lambda window: window.batch(sequence_length + 1))


def write_task_shards(name: str, directory: Path | str, vocabulary: str, shard_tokens: int = SHARD_TOKENS) -> Path:
    """Writes the shards of a corpus from its Task, or from the user's own Task or Mixture, and returns their folder.
    Raises InputError as the plain backend and `user_task` do."""
    corpus, tokenizer = parse_corpus(name), load_tokenizer(vocabulary)
    folder = shards_folder(directory, name, vocabulary)
    if isinstance(corpus, Seqio):
        provider = user_task(corpus, tokenizer)
        streams = {split: read_user_documents(provider, split, corpus.feature, tokenizer.eos_id) for split in SPLITS}
    else:
        streams = {split: read_task_documents(register_task(name, vocabulary), split) for split in SPLITS}
    write_shards(folder, corpus, tokenizer, streams, shard_tokens)
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
    """Writes the shards of the corpus `mixture:NAME` and returns their folder, unless its rates, sizes and sources are
    unchanged. Whole documents are sampled at `rates` until each split has at least its number of tokens."""
    corpus = Mixture(name)
    sizes: dict[SplitName, int] = {"train": train_tokens, "validation": validation_tokens}
    source = mixture_source_hash(rates, train_tokens, validation_tokens)
    folder = shards_folder(directory, corpus.name, vocabulary)
    if current_meta(folder, source) is None:
        provider = register_mixture(f"{name}.{source}", rates, vocabulary)
        streams = {split: _take_tokens(read_task_documents(provider, split), size) for split, size in sizes.items()}
        parts = [parse_corpus(part) for part in rates]
        write_shards(folder, corpus, load_tokenizer(vocabulary), streams, shard_tokens, source, parts)
    return folder


def _take_tokens(documents: Iterable[np.ndarray], tokens: int) -> Iterator[np.ndarray]:
    """The first documents that together have at least `tokens` tokens."""
    for ids in documents:
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
        name: corpus; required.
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
    """Write the shards of a mixture; training names the corpus mixture:NAME.

    Args:
        name: name of the mixture; required.
        parts: CORPUS=RATE, where rates are relative numbers of documents; required.
        train_tokens: tokens of its training split, rounded up to whole documents; required.
        validation_tokens: tokens of its validation split, rounded up to whole documents.
        directory: folder of the prepared corpora.
        vocabulary: "byte" or the path of a SentencePiece model.
    """
    sizes = {"train_tokens": train_tokens, "validation_tokens": validation_tokens}
    print(write_mixture_shards(name, parse_rates(name, parts), directory, vocabulary, **sizes))


if __name__ == "__main__":
    try:
        app.cli(prog="python -m scaling.data.seqio_corpora", description=__doc__)
    except InputError as error:
        print(printable(error), file=sys.stderr)
        sys.exit(2)
