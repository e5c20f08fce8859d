"""Task `closers`: validation text stops before a closing bracket. Is it a round, a square or a curly one?

The context shows the opening bracket, some bytes back, so that it determines the answer. The three kinds of bracket
are asked for equally often, however rare they are in the corpus.
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
CONTEXT_CHARACTERS = 64
"""Characters of the context, at most."""
MIN_DISTANCE = 4
"""Least distance between the brackets of a pair, in characters."""
MIN_CONTEXTS = 16
"""Contexts that a corpus must have for each kind of bracket."""


def closers(tokens: TokenShards, sequence_length: int) -> Measurement:
    """Raises InputError when the validation split has too few pairs of brackets of some kind."""
    contexts = contexts_by_kind(tokens, min(CONTEXT_CHARACTERS, sequence_length))
    for closer, texts in zip(CLOSERS, contexts, strict=True):
        if len(texts) < MIN_CONTEXTS:
            raise InputError(
                f"{NAME}: corpus {tokens.corpus!r} has {len(texts)} contexts for {closer!r}: must have at least "
                f"{MIN_CONTEXTS}; leave the task out of --tasks"
            )

    def make_question(tokenizer: Tokenizer, generator: np.random.Generator) -> Question:
        kind = int(generator.integers(len(CLOSERS)))
        context = tokenizer.encode(contexts[kind][int(generator.integers(len(contexts[kind])))])
        order = generator.permutation(len(CLOSERS))
        choices = tuple(tokenizer.encode(CLOSERS[index]) for index in order)
        return Question(context, choices, int(np.flatnonzero(order == kind)[0]))

    return multiple_choice(NAME, len(CLOSERS), make_question, sequence_length)


def contexts_by_kind(tokens: TokenShards, characters: int) -> list[list[str]]:
    """For each kind of closing bracket: the `characters` ASCII characters before every place where one is due, with the
    opening bracket among them."""
    tokenizer, contexts = load_tokenizer(tokens.vocabulary), [[] for _ in CLOSERS]
    for ids in read_documents(tokens, tokens.validation):
        text = tokenizer.decode(ids)
        for opened, closed in match_brackets(text):
            if MIN_DISTANCE < closed - opened <= characters <= closed:
                context = text[closed - characters : closed]
                if len(context.encode()) == characters:
                    contexts[CLOSERS.index(text[closed])].append(context)
    return contexts


def match_brackets(text: str) -> list[tuple[int, int]]:
    """The places of each opening bracket and of the one that closes it. A closing bracket of the wrong kind, as in a
    string of code, discards all that are open."""
    stack: list[int] = []
    pairs = []
    for place, character in enumerate(text):
        if character in OPENERS:
            stack.append(place)
        elif character in CLOSERS:
            if stack and OPENERS.index(text[stack[-1]]) == CLOSERS.index(character):
                pairs.append((stack.pop(), place))
            else:
                stack.clear()
    return pairs
