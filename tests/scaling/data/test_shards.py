"""Batches are a pure function of (seed, step), whatever the process and the shards; an epoch has every window once."""

import dataclasses
import itertools
import time
from pathlib import Path

import numpy as np
import pytest

from scaling.data.file_corpora import Text
from scaling.data.prepare import write_shards
from scaling.data.shards import (
    TokenShards,
    gather_batch,
    limit_unique_tokens,
    open_shards,
    permute,
    read_validation_windows,
)
from scaling.data.tokenizer import ByteTokenizer
from scaling.errors import InputError

T = 8
WINDOWS = 101
TRAIN = np.random.default_rng(0).integers(3, 259, WINDOWS * T + 1 + 5)
VALIDATION = np.random.default_rng(1).integers(3, 259, 50)


def write_corpus(folder: Path, shard_tokens: int = 1 << 20) -> tuple[Path, str]:
    corpus = Text(str(folder / "source.txt"))
    (folder / "source.txt").write_text("the tokens below stand for it")
    documents = {"train": np.split(TRAIN, [100, 101, 500]), "validation": [VALIDATION]}
    write_shards(folder / corpus.slug / "byte", corpus, ByteTokenizer(), documents, shard_tokens)  # pyrefly: ignore
    return folder, corpus.name


@pytest.fixture
def tokens(tmp_path: Path) -> TokenShards:
    return open_shards(*write_corpus(tmp_path))


def sequences(tokens: TokenShards, first: int, count: int, seed: int = 0) -> np.ndarray:
    steps = (
        gather_batch(tokens, seed=seed, step=s, batch_sequences=1, sequence_length=T)
        for s in range(first, first + count)
    )
    return np.concatenate(list(steps))


def starts(tokens_BT: np.ndarray) -> list[int]:
    """The number of the window that each row holds, identified by its contents."""
    number_of = {TRAIN[i * T : i * T + T + 1].tobytes(): i for i in range(WINDOWS)}
    return [number_of[row.astype(TRAIN.dtype).tobytes()] for row in tokens_BT]


@pytest.mark.parametrize("epoch", [0, 1, 7])
def test_an_epoch_visits_every_window_once(tokens: TokenShards, epoch: int) -> None:
    assert sorted(starts(sequences(tokens, epoch * WINDOWS, WINDOWS))) == list(range(WINDOWS))


def test_every_epoch_and_seed_has_its_own_order(tokens: TokenShards) -> None:
    orders = [starts(sequences(tokens, e * WINDOWS, WINDOWS, seed)) for e, seed in itertools.product((0, 1), (0, 1))]
    assert len({tuple(order) for order in orders}) == 4
    for one, other in itertools.combinations([*orders, list(range(WINDOWS))], 2):
        assert sum(a == b for a, b in zip(one, other, strict=True)) < 10


def test_a_batch_that_straddles_epochs_is_both(tokens: TokenShards) -> None:
    whole = gather_batch(tokens, seed=3, step=4, batch_sequences=24, sequence_length=T)
    assert (whole == sequences(tokens, 96, 24, seed=3)).all()


@pytest.mark.parametrize("processes", [1, 2, 3, 12])
def test_rows_do_not_depend_on_the_number_of_processes(tokens: TokenShards, processes: int) -> None:
    options = {"seed": 5, "step": 9, "batch_sequences": 12, "sequence_length": T}
    share = 12 // processes
    parts = [gather_batch(tokens, **options, rows=slice(p * share, (p + 1) * share)) for p in range(processes)]
    assert (np.concatenate(parts) == gather_batch(tokens, **options)).all()


def test_a_step_needs_no_step_before_it(tokens: TokenShards, tmp_path: Path) -> None:
    options = {"seed": 2, "batch_sequences": 4, "sequence_length": T}
    run = [gather_batch(tokens, **options, step=step) for step in range(60)]
    resumed = open_shards(tmp_path, tokens.corpus)
    for step in (59, 17, 0):
        assert (gather_batch(resumed, **options, step=step) == run[step]).all()


@pytest.mark.parametrize("shard_tokens", [1, 7, 8, 64, 100])
def test_shards_are_one_stream(tokens: TokenShards, tmp_path: Path, shard_tokens: int) -> None:
    (tmp_path / "many").mkdir()
    many = open_shards(*write_corpus(tmp_path / "many", shard_tokens))
    assert len(many.train.shards) == -(-len(TRAIN) // shard_tokens)
    options = {"seed": 1, "step": 3, "batch_sequences": 40, "sequence_length": T}
    assert (gather_batch(many, **options) == gather_batch(tokens, **options)).all()
    assert (read_validation_windows(many, T, 48) == read_validation_windows(tokens, T, 48)).all()
    assert many.fingerprint == tokens.fingerprint


def test_batches_are_int32_and_overlap_by_the_first_token(tokens: TokenShards) -> None:
    rows = gather_batch(tokens, seed=0, step=0, batch_sequences=5, sequence_length=T)
    assert rows.shape == (5, T + 1)
    assert rows.dtype == np.int32


def test_validation_is_the_first_windows(tokens: TokenShards) -> None:
    windows_NT = read_validation_windows(tokens, T, 3 * T + 1)
    assert (windows_NT == np.stack([VALIDATION[i * T : i * T + T + 1] for i in range(3)])).all()
    assert len(read_validation_windows(tokens, T, 10**9)) == (len(VALIDATION) - 1) // T
    assert windows_NT.dtype == np.int32


def test_unique_tokens_stop_at_an_epoch(tokens: TokenShards) -> None:
    assert tokens.unique_tokens(100, T) == 100
    assert tokens.unique_tokens(10**6, T) == WINDOWS * T


def test_limited_to_its_first_tokens_a_corpus_repeats_them_in_other_orders(tokens: TokenShards) -> None:
    few = limit_unique_tokens(tokens, 10 * T + 3)
    epochs = [starts(sequences(few, 10 * epoch, 10)) for epoch in range(3)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(10))] * 3
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert few.unique_tokens(10**6, T) == 10 * T
    assert few.unique_tokens(5, T) == 5


def test_a_limit_beyond_the_corpus_or_none_changes_no_batch(tokens: TokenShards) -> None:
    for unique in (None, 10**9, WINDOWS * T):
        assert starts(sequences(limit_unique_tokens(tokens, unique), 0, 20)) == starts(sequences(tokens, 0, 20))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 31, 32, 33, 1000, 4097])
def test_permute_is_a_bijection(size: int) -> None:
    for key in ((0, 0), (1, 0), (0, 5)):
        order = permute(np.arange(size), size, seed=key[0], epoch=key[1])
        assert np.array_equal(np.sort(order), np.arange(size))


def test_permute_looks_random() -> None:
    size = 100_003
    order = permute(np.arange(size), size, seed=0, epoch=0)
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 4 / size**0.5
    assert abs(np.corrcoef(np.arange(size), order)[0, 1]) < 4 / size**0.5
    expected = size / 16
    counts = np.histogram(order[: size // 2] - order[size // 2 : 2 * (size // 2)], 16)[0]
    assert counts.min() > 0
    cells = np.histogram2d(np.arange(size), order, bins=4)[0]
    assert ((cells - expected) ** 2 / expected).sum() < 40


def test_permute_takes_no_memory_at_trillions() -> None:
    order = permute(np.arange(1000), 10**13, seed=0, epoch=0)
    assert len(set(order.tolist())) == 1000
    assert 4.5e12 < order.mean() < 5.5e12
    assert order.max() < 10**13


def test_batch_is_fast(tokens: TokenShards) -> None:
    spent = []
    for step in range(100):
        start = time.perf_counter()
        gather_batch(tokens, seed=0, step=step, batch_sequences=16, sequence_length=T)
        spent.append(time.perf_counter() - start)
    assert sorted(spent)[50] < 1e-3


def test_too_long_a_sequence_names_the_longest(tokens: TokenShards) -> None:
    n = len(TRAIN)
    assert gather_batch(tokens, seed=0, step=0, batch_sequences=1, sequence_length=n - 1).shape == (1, n)
    with pytest.raises(InputError, match=rf"sequence_length.*\b{n}\b.*train.*\b{n - 1}\b"):
        gather_batch(tokens, seed=0, step=0, batch_sequences=1, sequence_length=n)
    with pytest.raises(InputError, match=r"sequence_length.*\b50\b.*validation.*\b49\b"):
        read_validation_windows(tokens, 50, 10**6)
    with pytest.raises(InputError, match=r"validation_tokens.*\b7\b.*sequence_length.*\b8\b"):
        read_validation_windows(tokens, T, 7)


def test_a_token_out_of_the_models_vocabulary_is_named(tokens: TokenShards) -> None:
    highest = int(TRAIN.max())
    rows = {"seed": 0, "step": 0, "batch_sequences": WINDOWS, "sequence_length": T}
    assert gather_batch(tokens, **rows, vocab_size=highest + 1).max() == highest
    with pytest.raises(InputError, match=rf"\b{highest}\b.*vocab_size.*\b{highest}\b.*'byte'.*\b259\b"):
        gather_batch(tokens, **rows, vocab_size=highest)
    with pytest.raises(InputError, match=r"vocab_size.*\b100\b"):
        read_validation_windows(tokens, T, 48, vocab_size=100)
    smaller = dataclasses.replace(tokens, vocab_size=100)
    with pytest.raises(InputError, match=r"vocab_size.*\b100\b"):
        gather_batch(smaller, **rows)


def test_unprepared_corpus_says_the_command(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"'stdlib'.*scaling data prepare 'stdlib' --directory {tmp_path}"):
        open_shards(tmp_path, "stdlib")
    with pytest.raises(InputError, match=r"'stdlob'.*\bstdlib\b"):
        open_shards(tmp_path, "stdlob")


def test_another_fingerprint_says_both(tokens: TokenShards, tmp_path: Path) -> None:
    assert open_shards(tmp_path, tokens.corpus, "byte", tokens.fingerprint).fingerprint == tokens.fingerprint
    with pytest.raises(InputError, match=f"beef.*{tokens.fingerprint}"):
        open_shards(tmp_path, tokens.corpus, "byte", "beef")


def test_torn_shards_and_meta_are_named(tokens: TokenShards, tmp_path: Path) -> None:
    shard = next(tmp_path.glob("*/byte/train-00000.bin"))
    shard.write_bytes(shard.read_bytes()[:-2])
    size = 2 * len(TRAIN)
    with pytest.raises(InputError, match=rf"train-00000\.bin\D*{size - 2}\D*{size}\b"):
        open_shards(tmp_path, tokens.corpus)
    shard.unlink()
    with pytest.raises(InputError, match=r"train-00000\.bin\D*0\b"):
        open_shards(tmp_path, tokens.corpus)
    (shard.parent / "meta.json").write_text("{")
    with pytest.raises(InputError, match=r"meta\.json"):
        open_shards(tmp_path, tokens.corpus)
    (shard.parent / "meta.json").write_text('{"schema": 99}')
    with pytest.raises(InputError, match=r"meta\.json.*schema.*\b99\b"):
        open_shards(tmp_path, tokens.corpus)
