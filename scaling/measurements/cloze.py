"""Task `cloze`: which of four pieces of validation text continues the context? The others are of other documents."""

from __future__ import annotations

import numpy as np

from scaling.data.shards import TokenShards, read_documents
from scaling.data.tokenizer import Tokenizer
from scaling.errors import InputError
from scaling.measurements import Measurement
from scaling.measurements.multiple_choice import Question, multiple_choice, shuffle_choices

NAME, CHOICES = "cloze", 4
CONTEXT_TOKENS = 49
"""Tokens of the context, at most."""
CHOICE_TOKENS = 16
"""Tokens of each choice, at most."""
MAX_TRIES = 1000
"""Attempts to find four choices that all differ."""


def cloze(tokens: TokenShards, sequence_length: int) -> Measurement:
    """The right choice is what follows a uniformly random place in the validation split; the wrong ones are as many
    tokens from random places in other documents. The ceiling of 1 is an upper bound: what the best possible model
    reaches is not known.

    Raises InputError when the split has fewer than two documents longer than two choices. The measurement's run raises
    InputError when text repeats so much that no four choices differ.
    """
    choice_tokens = min(CHOICE_TOKENS, sequence_length // 2)
    context_tokens = min(CONTEXT_TOKENS, sequence_length + 1 - choice_tokens)

    documents = [ids for ids in read_documents(tokens, tokens.validation) if len(ids) > 2 * choice_tokens]
    if len(documents) < 2:
        raise InputError(
            f"{NAME}: corpus {tokens.corpus!r} has {len(documents)} validation documents of more than "
            f"{2 * choice_tokens} tokens: must have at least 2; leave the task out of --tasks"
        )
    # Documents are drawn in proportion to the places at which a choice can begin.
    places_D = np.array([len(ids) - 2 * choice_tokens for ids in documents], float)

    def make_question(tokenizer: Tokenizer, generator: np.random.Generator) -> Question:
        for _ in range(MAX_TRIES):
            right = int(generator.choice(len(documents), p=places_D / places_D.sum()))
            others_D = np.where(np.arange(len(documents)) == right, 0, places_D)
            indices = [right, *generator.choice(len(documents), CHOICES - 1, p=others_D / others_D.sum())]
            starts = [int(generator.integers(choice_tokens, len(documents[d]) - choice_tokens)) for d in indices]
            choices = [documents[d][start : start + choice_tokens] for d, start in zip(indices, starts, strict=True)]
            if len({choice.tobytes() for choice in choices}) == CHOICES:
                context = np.r_[tokenizer.eos_id, documents[right][: starts[0]]][-context_tokens:]
                return shuffle_choices(context, choices[0], choices[1:], generator)
        raise InputError(
            f"{NAME}: corpus {tokens.corpus!r} repeats itself: {MAX_TRIES:,} attempts found no {CHOICES} different "
            f"pieces of {choice_tokens} tokens; leave the task out of --tasks"
        )

    return multiple_choice(NAME, CHOICES, make_question, sequence_length)
