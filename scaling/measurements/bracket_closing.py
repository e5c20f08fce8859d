"""Closers: held-out text stops before a closing bracket; is it a round, a square or a curly one?

What is open is seen, some bytes back, so that the answer follows from what the model is shown. The kinds are asked for
equally often, however rare they are in the corpus.
"""

from __future__ import annotations

import numpy as np

from scaling.data.shards import TokenShards, read_documents
from scaling.data.tokenizer import Tokenizer, load_tokenizer
from scaling.errors import InputError
from scaling.measurements import Measurement
from scaling.measurements.brackets import CLOSERS, OPENERS
from scaling.measurements.multiple_choice import Question, multiple_choice

NAME = "closers"
SHOWN, NEAREST = 64, 4
"""Characters of text shown; and between the brackets of a pair, at least."""
FEWEST = 16
"""Places of each kind that a corpus must have."""


def closers(tokens: TokenShards, length: int) -> Measurement:
    """Raises InputError when the validation split has too few pairs of brackets of some kind."""
    found = contexts_by_kind(tokens, min(SHOWN, length))
    for kind, of_kind in zip(CLOSERS, found, strict=True):
        if len(of_kind) < FEWEST:
            raise InputError(
                f"{NAME}: corpus {tokens.corpus!r} has {len(of_kind)} places before a {kind!r} that closes what is "
                f"seen; at least {FEWEST} are needed"
            )

    def ask(vocabulary: Tokenizer, generator: np.random.Generator) -> Question:
        kind = int(generator.integers(len(CLOSERS)))
        context = vocabulary.encode(found[kind][int(generator.integers(len(found[kind])))])
        order = generator.permutation(len(CLOSERS))
        choices = tuple(vocabulary.encode(CLOSERS[one]) for one in order)
        return Question(context, choices, int(np.flatnonzero(order == kind)[0]))

    return multiple_choice(NAME, len(CLOSERS), ask, length)


def contexts_by_kind(tokens: TokenShards, shown: int) -> list[list[str]]:
    """What stands before each place where a closer is due, by kind: `shown` ASCII characters with the opener among
    them."""
    vocabulary, found = load_tokenizer(tokens.vocabulary), [[] for _ in CLOSERS]
    for ids in read_documents(tokens, tokens.validation):
        text = vocabulary.decode(ids)
        for opened, closed in match_brackets(text):
            if NEAREST < closed - opened <= shown <= closed:
                before = text[closed - shown : closed]
                if len(before.encode()) == shown:
                    found[CLOSERS.index(text[closed])].append(before)
    return found


def match_brackets(text: str) -> list[tuple[int, int]]:
    """Places of an opening bracket and of the one that closes it. A closer of the wrong kind, as in a string of code,
    ends all that was open."""
    stack: list[int] = []
    found = []
    for place, character in enumerate(text):
        if character in OPENERS:
            stack.append(place)
        elif character in CLOSERS:
            if stack and OPENERS.index(text[stack[-1]]) == CLOSERS.index(character):
                found.append((stack.pop(), place))
            else:
                stack.clear()
    return found
