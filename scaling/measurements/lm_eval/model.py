"""A trained model behind the interface of lm-evaluation-harness (`LM`): log likelihoods and generated text.

Importing this module imports lm_eval, so tasks.py imports it only when a task runs.
"""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.models.utils import normalize_gen_kwargs

from scaling.data.tokenizer import Tokenizer
from scaling.errors import InputError
from scaling.generation.sampling import GREEDY, Sampling
from scaling.measurements.likelihood import ContextPair
from scaling.measurements.prompting import PromptedModel, completions, log_likelihoods


class LmEvalModel(LM):
    """Implements lm-eval's requests. Every text begins a document, hence follows an end-of-document id."""

    def __init__(self, prompted: PromptedModel) -> None:
        super().__init__()
        self.prompted = prompted

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """For each (context, continuation): the log probability, and whether greedy decoding yields the same ids.
        Raises InputError when a continuation is empty: its probability would be 1."""
        for request in requests:
            if request.args[-1] == "":
                raise InputError(
                    f"task {request.task_name!r}: document {request.doc_id}, counted from 0: the text to score is "
                    "empty: must be a text; mend the document"
                )
        log_P, greedy_P = log_likelihoods(
            self.prompted, [encode_pair(self.prompted.tokenizer, *request.args) for request in requests]
        )
        return list(zip(log_P.tolist(), greedy_P.tolist(), strict=True))

    def loglikelihood_rolling(self, requests: Sequence[Instance]) -> list[float]:
        """For each (document,): its log probability."""
        pairs = [encode_pair(self.prompted.tokenizer, "", *request.args) for request in requests]
        return log_likelihoods(self.prompted, pairs)[0].tolist()

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """For each (context, settings): generated text up to the first string of settings["until"], an end of document,
        or settings["max_gen_toks"] tokens."""
        return generate_texts(
            self.prompted, [(context, settings) for context, settings in (request.args for request in requests)]
        )


def is_raised_by_model(error: BaseException) -> bool:
    """Whether an exception comes out of the model, rather than out of lm-eval."""
    return any(frame.f_code.co_filename == __file__ for frame, _ in traceback.walk_tb(error.__traceback__))


def generate_texts(prompted: PromptedModel, requests: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
    """The texts of `LmEvalModel.generate_until`. Requests with equal settings are decoded together."""
    texts, groups = [""] * len(requests), {}
    for index, (_, raw_settings) in enumerate(requests):
        groups.setdefault(repr(sorted(raw_settings.items())), []).append(index)
    tokenizer = prompted.tokenizer
    for number, indices in enumerate(groups.values()):
        settings: dict[str, Any] = dict(normalize_gen_kwargs(requests[indices[0]][1]))
        prompts = [np.r_[tokenizer.eos_id, tokenizer.encode(requests[index][0])] for index in indices]
        key = jax.random.fold_in(prompted.key, number)
        ids_per_prompt = completions(prompted, prompts, settings["max_gen_toks"], to_sampling(settings), key)
        for index, ids in zip(indices, ids_per_prompt, strict=True):
            texts[index] = cut_at_stop(tokenizer.decode(ids), settings["until"])
    return texts


def to_sampling(settings: dict[str, Any]) -> Sampling:
    """The settings as transformers interprets them: temperature 1 by default, and no top_k when it is 0."""
    if not settings["do_sample"]:
        return GREEDY
    top_k, top_p = settings.get("top_k") or None, settings.get("top_p")
    return Sampling(float(settings.get("temperature", 1.0)), top_k, None if top_p is None else float(top_p))


def cut_at_stop(text: str, until: Sequence[str]) -> str:
    """The text before the first occurrence of any string of `until`."""
    return text[: min((text.index(stop) for stop in until if stop and stop in text), default=len(text))]


def encode_pair(tokenizer: Tokenizer, context: str, continuation: str) -> ContextPair:
    """Encodes both texts together and splits the ids at the boundary.

    White space at the end of the context belongs to the continuation, as in lm-eval's own models. So does a token that
    crosses the boundary, because it depends on the continuation."""
    stripped = context.rstrip()
    ids = tokenizer.encode(context + continuation)
    end_bytes = np.cumsum(tokenizer.bytes_per_token[ids])  # where the text of each id ends
    boundary = int(np.searchsorted(end_bytes, len(stripped.encode()), side="right"))
    return ContextPair(np.r_[tokenizer.eos_id, ids[:boundary]], ids[boundary:])
