"""Makes the input of coming steps in a thread, so that an accelerator never waits for its batch.

Items come in the order of the steps and each is made once, so that a run learns the same with and without it.
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
"""Items made ahead. The first hides the making of a batch behind a step; the second evens out a slow read."""


@contextlib.contextmanager
def prefetch(make: Callable[[int], Item], steps: Iterable[int], ahead: int = ITEMS_AHEAD) -> Iterator[Iterator[Item]]:
    """Yields an iterator over make(step), in order; the thread works up to `ahead` items beyond the latest one taken.

    An exception of `make` is raised by the iterator in its turn, after the items before it. The thread has ended when
    the block is left, in whatever way; it finishes the item that it is making, so leaving may take that long.
    """
    # One thread, so items are made in order. `submitted` is a generator: a step is submitted when it is drawn.
    with ThreadPoolExecutor(1, "prefetch") as pool:
        submitted = (pool.submit(make, step) for step in steps)
        queue = deque(itertools.islice(submitted, ahead))

        def items() -> Iterator[Item]:
            while queue:
                item = queue.popleft().result()
                queue.extend(itertools.islice(submitted, 1))  # taking one item starts the next
                yield item

        try:
            yield items()
        finally:
            # Cancels what has not been started; without this, leaving would make every submitted item.
            pool.shutdown(wait=True, cancel_futures=True)
