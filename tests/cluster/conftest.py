"""Schedulers brought up for real, once for all tests of a kind; a skip where they cannot be, not where they fail."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.slurm_cluster import SlurmCluster, Unavailable, slurm_cluster


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    """A SLURM of two nodes. Sees the folder below which pytest makes its temporary ones."""
    try:
        with slurm_cluster(tmp_path_factory.getbasetemp()) as cluster:
            yield cluster
    except Unavailable as why:
        pytest.skip(str(why))
