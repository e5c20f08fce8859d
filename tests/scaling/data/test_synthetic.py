"""Corpora of known entropy: the stated entropies equal those counted in the generated text."""

import itertools
import math
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

from scaling.data.prepare import prepare
from scaling.data.shards import gather_batch, open_shards, read_validation_windows
from scaling.data.synthetic import RECORD_TOKENS, SyntheticCorpus, Walk, Zipf
from scaling.errors import InputError

WALK = Walk(nodes=20, edges=45, tokens=1 << 19)
ZIPF = Zipf(facts=300, exponent=1.2, tokens=1 << 19)


def windows(corpus: SyntheticCorpus, directory: Path, sequence_length: int, tokens: int) -> np.ndarray:
    prepare(corpus.name, directory, backend="plain")
    return read_validation_windows(open_shards(directory, corpus.name), sequence_length, tokens)


@pytest.mark.parametrize("corpus", [Walk(), WALK, Walk(nodes=94, edges=94), Walk(nodes=5, edges=10), Walk(seed=3)])
def test_graph_is_connected_undirected_and_has_its_edges(corpus: Walk) -> None:
    edges = {(i, j) for i, near in enumerate(corpus.neighbours) for j in near}
    assert all((j, i) in edges and i != j for i, j in edges)
    assert len(edges) == 2 * corpus.edges == corpus.degrees.sum()
    reached = {0}
    for _ in range(corpus.nodes):
        reached |= {j for i in reached for j in corpus.neighbours[i]}
    assert len(reached) == corpus.nodes


def test_degrees_differ_so_that_the_rate_is_not_one_logarithm() -> None:
    assert len(set(Walk().degrees.tolist())) > 3


def test_walk_keeps_to_edges_and_visits_in_proportion_to_degree() -> None:
    walk = np.frombuffer(WALK.text("train").encode(), np.uint8).astype(int) - 33
    assert len(walk) == WALK.tokens
    assert all(j in WALK.neighbours[i] for i, j in set(itertools.pairwise(walk.tolist())))
    share = np.bincount(walk, minlength=20) / len(walk)
    assert np.abs(share - WALK.degrees / (2 * WALK.edges)).max() < 0.004


def test_counted_conditional_entropy_of_the_walk_is_the_floor() -> None:
    walk = np.frombuffer(WALK.text("train").encode(), np.uint8).astype(int) - 33
    counts = np.zeros((20, 20))
    np.add.at(counts, (walk[:-1], walk[1:]), 1)
    p = counts / counts.sum(1, keepdims=True)
    counted = -(counts[counts > 0] @ np.log(p[counts > 0])) / counts.sum()
    nats = np.log(WALK.degrees)[walk]
    error = 3 * nats.std() / len(walk) ** 0.5 + 90 / len(walk)
    assert abs(counted - WALK.floor_nats_per_token(128)) < error < 0.01


def test_the_ring_has_the_entropy_of_a_coin() -> None:
    assert Walk(nodes=9, edges=9).floor_nats_per_token(16) == pytest.approx(math.log(2))


@pytest.mark.parametrize(("corpus", "rate"), [(WALK, 0.02), (ZIPF, 0.03)])
def test_the_samples_own_floor_scatters_around_the_expected_one(
    corpus: Walk | Zipf, rate: float, tmp_path: Path
) -> None:
    windows_NT = windows(corpus, tmp_path, 128, 32_000)
    assert corpus.floor_of_windows(windows_NT) == pytest.approx(corpus.floor_nats_per_token(128), rel=rate)


@pytest.mark.parametrize("corpus", [WALK, ZIPF])
def test_a_counting_model_comes_down_to_the_floor_and_not_below(corpus: Walk | Zipf, tmp_path: Path) -> None:
    """A model that counts continuations of sufficient contexts (the last token; the record so far) learns from batches
    and is scored on validation windows."""
    windows_NT = windows(corpus, tmp_path, 64, 30_000)
    tokens = open_shards(tmp_path, corpus.name)

    def contexts(row: np.ndarray, t: int) -> tuple[int, ...]:
        return (int(row[t]),) if isinstance(corpus, Walk) else tuple(row[t - t % RECORD_TOKENS : t + 1].tolist())

    seen: defaultdict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
    for row in gather_batch(tokens, seed=0, step=0, batch_sequences=6000, sequence_length=64):
        for t in range(64):
            seen[contexts(row, t)][int(row[t + 1])] += 1
    nats = []
    for row in windows_NT:
        for t in range(64):
            counted = seen[contexts(row, t)]
            nats.append(-math.log((counted[int(row[t + 1])] + 0.01) / (counted.total() + 0.01 * 259)))
    floor = corpus.floor_of_windows(windows_NT)
    assert floor - 0.002 < np.mean(nats) < floor + 0.015


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_beyond_one_word_is_refused(seed: int) -> None:
    """Its second word would be read as the stream, so that two seeds would share their numbers."""
    with pytest.raises(InputError, match=rf"\bseed\b.*{seed}\b"):
        Walk(seed=seed)


def test_values_are_a_function_of_keys_that_the_seed_fixes() -> None:
    values: dict[str, set[str]] = defaultdict(set)
    for split in ("train", "validation"):
        text = ZIPF.text(split)
        assert len(text) % RECORD_TOKENS == 0
        for record in text.splitlines():
            values[record[:3]].add(record[4:])
    assert all(len(value) == 1 for value in values.values())
    assert len(values) > 290
    assert len({value for one in values.values() for value in one}) > 0.97 * len(values)
    assert (Zipf(facts=300, seed=1).records[:, 4:7] != ZIPF.records[:, 4:7]).any()


def test_keys_follow_their_power_law() -> None:
    keys = Counter(record[:3] for record in ZIPF.text("train").splitlines())
    expected = ZIPF.probabilities * keys.total()
    counted = np.array([keys[bytes(record[:3]).decode()] for record in ZIPF.records])
    assert ((counted - expected) ** 2 / expected).sum() < 300 + 5 * (2 * 300) ** 0.5
    assert expected[0] / expected[9] == pytest.approx(10**1.2)


def test_floor_of_zipf_windows_is_the_chain_rule_spelt_out(tmp_path: Path) -> None:
    corpus = Zipf(facts=3000, exponent=0.5, tokens=1 << 14)
    windows_NT = windows(corpus, tmp_path, 16, 160)
    law = {bytes(record).decode(): p for record, p in zip(corpus.records, corpus.probabilities, strict=True)}

    def mass(prefix: str) -> float:
        return sum(p for record, p in law.items() if record.startswith(prefix))

    nats = []
    for row in windows_NT:
        text = bytes((row - 3).astype(np.uint8)).decode()
        for t in range(1, 17):
            start = t - t % RECORD_TOKENS
            nats.append(-math.log(mass(text[start : t + 1]) / mass(text[start:t])))
    assert corpus.floor_of_windows(windows_NT) == pytest.approx(np.mean(nats), rel=1e-8)


def test_floor_of_walk_windows_is_the_choices_at_each_context(tmp_path: Path) -> None:
    windows_NT = windows(WALK, tmp_path, 16, 160)
    nats = [math.log(len(WALK.neighbours[token - 3 - 33])) for row in windows_NT for token in row[:-1].tolist()]
    assert WALK.floor_of_windows(windows_NT) == pytest.approx(np.mean(nats), rel=1e-8)


def test_the_walk_starts_in_its_stationary_distribution() -> None:
    grid = (np.arange(9000) + 0.5) / 9000
    first = np.bincount([WALK.first_node(u) for u in grid], minlength=20)
    assert np.allclose(first, 9000 * WALK.degrees / (2 * WALK.edges))
    starts = [Walk(nodes=4, edges=4 + seed % 2, seed=seed, tokens=128).text("train")[0] for seed in range(400)]
    assert len(set(starts)) == 4
    assert min(Counter(starts).values()) > 60


def test_floors_refuse_what_they_do_not_cover(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"sequence_length\D*12\b.*\b8\b"):
        ZIPF.floor_nats_per_token(12)
    shifted = windows(ZIPF, tmp_path, 17, 1000)[:, 1:]
    with pytest.raises(InputError, match=r"'zipf\?"):
        ZIPF.floor_of_windows(shifted[:, :17])
    with_end = np.array([[33 + 3, 34 + 3, 1, 33 + 3]])
    with pytest.raises(InputError, match=r"'walk\?"):
        WALK.floor_of_windows(with_end)


@pytest.mark.parametrize("corpus", [WALK, ZIPF])
def test_text_is_fixed_by_the_seed_and_splits_differ(corpus: Walk | Zipf) -> None:
    same, other = type(corpus)(seed=corpus.seed), type(corpus)(seed=corpus.seed + 1)
    assert same.text("train") == type(corpus)().text("train")
    assert same.text("train") != other.text("train")
    assert same.text("train")[: 1 << 12] != same.text("validation")[: 1 << 12]
    assert same.source_hash() != other.source_hash()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: Walk(nodes=95), r"Walk\.nodes\D*95\D*3\D*94\b"),
        (lambda: Walk(nodes=8, edges=7), r"Walk\.edges\D*7\D*8\D*28\b"),
        (lambda: Zipf(facts=40_000), r"Zipf\.facts\D*40000\D*1\D*32768\b"),
        (lambda: Zipf(exponent=-1.0), r"Zipf\.exponent.*-1\.0\D*0\b"),
        (lambda: Walk(tokens=10), r"Walk\.tokens\D*10\D*128\b"),
    ],
)
def test_wrong_parameters_are_named(wrong: type, message: str) -> None:
    with pytest.raises(InputError, match=message):
        wrong()
