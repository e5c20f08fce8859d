"""A trained model as lm-evaluation-harness asks it: likelihoods of continuations and of documents, and free text.

Not in the design's list of modules: importing it imports lm_eval, which `scaling.measurements.lm_eval.tasks` puts off
until it is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.models.utils import normalize_gen_kwargs

from scaling.data.tokenizer import Tokenizer
from scaling.generation.sampling import GREEDY, Sampling
from scaling.measurements.likelihood import ContextPair
from scaling.measurements.prompting import PromptedModel, completions, log_likelihoods


class LmEvalModel(LM):
    """Every text begins a document, hence stands after an end of document."""

    def __init__(self, asked: PromptedModel) -> None:
        super().__init__()
        self.prompted = asked

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """For (context, continuation): the logarithm of the continuation's probability, and whether it is greedy."""
        log_P, greedy_P = log_likelihoods(
            self.prompted, [encode_pair(self.prompted.tokenizer, *request.args) for request in requests]
        )
        return list(zip(log_P.tolist(), greedy_P.tolist(), strict=True))

    def loglikelihood_rolling(self, requests: Sequence[Instance]) -> list[float]:
        """For (document,): the logarithm of its probability."""
        pairs = [encode_pair(self.prompted.tokenizer, "", *request.args) for request in requests]
        return log_likelihoods(self.prompted, pairs)[0].tolist()

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """For (context, settings): text up to the first of the settings' `until`, an end of document, or the most
        tokens asked for."""
        return generate_texts(
            self.prompted, [(context, settings) for context, settings in (one.args for one in requests)]
        )


def generate_texts(asked: PromptedModel, requests: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
    """As `HarnessModel.generate_until`. Requests of the same settings are answered together."""
    found, alike = [""] * len(requests), {}
    for place, (_, given) in enumerate(requests):
        alike.setdefault(repr(sorted(given.items())), []).append(place)
    for number, places in enumerate(alike.values()):
        settings: dict[str, Any] = dict(normalize_gen_kwargs(requests[places[0]][1]))
        prompts = [np.r_[asked.tokenizer.eos_id, asked.tokenizer.encode(requests[place][0])] for place in places]
        key = jax.random.fold_in(asked.key, number)
        made = completions(asked, prompts, settings["max_gen_toks"], to_sampling(settings), key)
        for place, ids in zip(places, made, strict=True):
            found[place] = cut_at_stop(asked.tokenizer.decode(ids), settings["until"])
    return found


def to_sampling(settings: dict[str, Any]) -> Sampling:
    """As transformers understands these settings: a temperature of 1 unless given, no top_k where that is 0."""
    if not settings["do_sample"]:
        return GREEDY
    top_k, top_p = settings.get("top_k") or None, settings.get("top_p")
    return Sampling(float(settings.get("temperature", 1.0)), top_k, None if top_p is None else float(top_p))


def cut_at_stop(text: str, until: Sequence[str]) -> str:
    """The text before the first of any of these."""
    return text[: min((text.index(one) for one in until if one and one in text), default=len(text))]


def encode_pair(vocabulary: Tokenizer, context: str, continuation: str) -> ContextPair:
    """The ids of both, encoded together. White space at the context's end is the continuation's, as in lm-eval's own
    models, and so is a token that reaches across the boundary: it tells of the continuation."""
    kept = context.rstrip()
    ids = vocabulary.encode(context + continuation)
    ends = np.cumsum(vocabulary.bytes_per_token[ids])
    inside = int(np.searchsorted(ends, len(kept.encode()), side="right"))
    return ContextPair(np.r_[vocabulary.eos_id, ids[:inside]], ids[inside:])
