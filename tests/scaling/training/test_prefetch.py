from __future__ import annotations

import threading
import time

import pytest

from scaling.training.prefetch import ITEMS_AHEAD, prefetch


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def test_items_are_made_once_and_in_order_and_the_thread_ends() -> None:
    made: list[int] = []

    def make(step: int) -> int:
        made.append(step)
        time.sleep(0.001 * (step % 3))
        return step * step

    with prefetch(make, range(5, 40)) as items:
        assert list(items) == [step * step for step in range(5, 40)]
        assert list(items) == [], "an iterator that has ended stays so"
    assert made == list(range(5, 40))
    assert threads() == []


def test_no_steps_give_no_items() -> None:
    with prefetch(lambda step: step, range(3, 3)) as items:
        assert list(items) == []


def test_items_are_made_ahead_but_no_further() -> None:
    made: list[int] = []
    with prefetch(lambda step: made.append(step) or step, range(100)) as items:
        for step, item in enumerate(items):
            assert item == step
            deadline = time.monotonic() + 5
            while len(made) < min(step + 1 + ITEMS_AHEAD, 100):
                assert time.monotonic() < deadline, "the thread does not work ahead"
                time.sleep(0.001)
            time.sleep(0.002)
            assert len(made) == min(step + 1 + ITEMS_AHEAD, 100)
            if step == 20:
                break
    assert threads() == []


def test_making_overlaps_with_using() -> None:
    started = time.monotonic()
    with prefetch(lambda step: time.sleep(0.02), range(20)) as items:
        for _ in items:
            time.sleep(0.02)
    assert time.monotonic() - started < 0.02 * 2 * 20 * 0.8, "40 sleeps on end are 0.8 s"


def test_an_error_comes_in_its_turn_as_it_was_raised() -> None:
    def make(step: int) -> int:
        if step == 3:
            raise KeyError("step 3")
        return step

    taken = []
    with pytest.raises(KeyError, match="step 3") as caught, prefetch(make, range(10)) as items:  # noqa: PT012
        for item in items:
            time.sleep(0.01)
            taken.append(item)
    assert taken == [0, 1, 2]
    assert any(entry.name == "make" for entry in caught.traceback), "the traceback leads to where it happened"
    assert threads() == []


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_no_thread_outlives_a_block_that_fails(error: type[BaseException]) -> None:
    with pytest.raises(error), prefetch(lambda step: step, range(1_000_000)) as items:  # noqa: PT012
        next(items)
        assert threads() != []
        raise error
    assert threads() == []


def test_leaving_makes_no_more_than_what_is_in_the_making() -> None:
    made: list[int] = []

    def make(step: int) -> int:
        time.sleep(0.05)
        made.append(step)
        return step

    with prefetch(make, range(1000), ahead=20) as items:
        assert next(items) == 0
    assert len(made) <= 4, "up to twenty could have been made ahead"
