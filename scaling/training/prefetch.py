"""Input made ahead of the step that takes it, by one thread, so that an accelerator never waits for its batch.

Not in the design's list of modules: it keeps threads out of train.py. Items come in the order of the steps, each made
once, so a run learns the same with and without it, and so does a run that resumes.
"""

from __future__ import annotations

import contextlib
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
ITEMS_AHEAD = 2
"""Items ready at once. One hides the making of a batch behind a step; the second evens out a slow read."""


@contextlib.contextmanager
def prefetch(make: Callable[[int], Item], steps: Iterable[int], ahead: int = ITEMS_AHEAD) -> Iterator[Iterator[Item]]:
    """Yields an iterator over make(step), in order; `ahead` items beyond the one in hand are ready or in the making.

    What `make` raises comes out of the iterator in its turn, after the items before it. However the block is left, the
    thread has ended by then; `make` itself is not interrupted, so leaving may take as long as one item.
    """
    with ThreadPoolExecutor(1, "prefetch") as pool:
        coming = (pool.submit(make, step) for step in steps)
        ready = deque(itertools.islice(coming, ahead))

        def items() -> Iterator[Item]:
            while ready:
                item = ready.popleft().result()
                ready.extend(itertools.islice(coming, 1))
                yield item

        try:
            yield items()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
