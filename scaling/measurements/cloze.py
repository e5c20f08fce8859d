"""Cloze: which of k pieces of held-out text goes on after this one? The wrong ones are pieces of other documents."""

from __future__ import annotations

import numpy as np

from scaling.data.shards import TokenShards, read_documents
from scaling.data.tokenizer import Tokenizer
from scaling.errors import InputError
from scaling.measurements import Measurement
from scaling.measurements.multiple_choice import Question, multiple_choice, shuffle_choices

NAME, CHOICES = "cloze", 4
SHOWN, ASKED = 49, 16
"""Tokens of the context, at most, and of each choice."""
TRIES = 1000
"""To find pieces that all differ."""


def cloze(tokens: TokenShards, length: int) -> Measurement:
    """A place in the validation split, all alike; what stands there, against as many tokens from anywhere in other
    documents. Nobody knows what the best possible model would reach: the ceiling of 1 is a bound.

    Raises InputError when the split has fewer than two documents of the size of a question; the measure's run does so
    when text repeats itself too much for choices that differ.
    """
    asked = min(ASKED, length // 2)
    shown = min(SHOWN, length + 1 - asked)

    found = [ids for ids in read_documents(tokens, tokens.validation) if len(ids) > 2 * asked]
    if len(found) < 2:
        raise InputError(
            f"{NAME}: corpus {tokens.corpus!r} has {len(found)} held-out documents of more than {2 * asked} tokens; "
            "at least 2 are needed"
        )
    room = np.array([len(ids) - 2 * asked for ids in found], float)

    def ask(vocabulary: Tokenizer, generator: np.random.Generator) -> Question:
        for _ in range(TRIES):
            home = int(generator.choice(len(found), p=room / room.sum()))
            elsewhere = np.where(np.arange(len(found)) == home, 0, room)
            chosen = [home, *generator.choice(len(found), CHOICES - 1, p=elsewhere / elsewhere.sum())]
            places = [int(generator.integers(asked, len(found[one]) - asked)) for one in chosen]
            choices = [found[one][place : place + asked] for one, place in zip(chosen, places, strict=True)]
            if len({choice.tobytes() for choice in choices}) == CHOICES:
                begun = np.r_[vocabulary.eos_id, found[home][: places[0]]][-shown:]
                return shuffle_choices(begun, choices[0], choices[1:], generator)
        raise InputError(
            f"{NAME}: the held-out text of corpus {tokens.corpus!r} repeats itself: {TRIES:,} times no {CHOICES} "
            f"pieces of {asked} tokens differed"
        )

    return multiple_choice(NAME, CHOICES, ask, length)
