"""The verb `scaling generate`: prints text that a trained run generates."""

from __future__ import annotations

import codecs
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import tyro

from scaling.data.tokenizer import Tokenizer, piece_bytes
from scaling.errors import InputError
from scaling.files import write_json
from scaling.generation.decode import stream
from scaling.generation.sampling import Sampling
from scaling.terminal import labelled, make_console, printable
from scaling.training.restore import TrainedModel, restore_model


def generate(
    run: Annotated[Path, tyro.conf.Positional],
    prompt: str | None = None,
    prompt_file: Path | None = None,
    tokens: int = 256,
    temperature: float = 0.8,
    top_k: int | None = 40,
    top_p: float | None = 0.95,
    seed: int = 0,
    samples: int = 1,
    window: int | None = None,
    step: int | None = None,
    json: Path | None = None,
) -> None:
    """Generate text with a trained run and print it as it comes. The prompt is the start of a document; the text ends
    where the model ends the document, or after --tokens.

    Args:
        run: the run folder.
        prompt: text to continue; empty when neither this nor --prompt-file is given.
        prompt_file: a UTF-8 file with the text to continue; - for standard input.
        tokens: largest number of tokens to generate.
        temperature: temperature of sampling; 0 takes the likeliest token each time, 1 samples from the model's
            distribution.
        top_k: sample from this many likeliest tokens only.
        top_p: of those, sample from the fewest likeliest tokens whose probabilities sum to this.
        seed: seed of sampling; equal seeds give equal texts.
        samples: number of texts.
        window: largest number of tokens that the model reads; the sequence length of training when not given. A longer
            text is continued from the last half of the window.
        step: step of the checkpoint; the last one when not given.
        json: also write the texts and their ids to this file.
    """
    sampling = Sampling(temperature, top_k, top_p)
    for name, value, least in (("samples", samples, 1), ("tokens", tokens, 1), ("window", window, 2)):
        if value is not None and value < least:
            raise InputError(f"{name} = {value}: must be {least} or more")
    if samples > 1 and temperature == 0:
        raise InputError(f"samples = {samples}: must be 1 at temperature = 0, where all would be the same")
    text = _prompt(prompt, prompt_file)
    restored = restore_model(run, step)
    vocabulary, trained = restored.tokenizer, restored.config.data.sequence_length
    ids = prompt_ids(vocabulary, text)
    if window is not None and min(window, len(ids) + tokens) > trained:
        make_console(stderr=True, soft_wrap=True, highlight=False).print(
            labelled(
                "note:",
                "yellow",
                f"window = {window}, and the run was trained on sequences of {trained}: "
                "past that its text may fall apart",
            )
        )
    started, samples_ids = time.perf_counter(), []
    for number in range(samples):
        key = jax.random.fold_in(jax.random.key(seed), number)
        arguments = (ids, tokens, window or trained, sampling, key, vocabulary.eos_id)
        if samples > 1:
            print(f"--- {number + 1} ---")
        samples_ids.append(_print_sample(text, restored, stream(restored.model, restored.params, *arguments)))
    if json is not None:
        seconds = time.perf_counter() - started
        write_json(json, _facts(restored, text, sampling, seed, window or trained, ids, samples_ids, seconds))


def prompt_ids(vocabulary: Tokenizer, text: str) -> np.ndarray:
    """The ids to generate from: the end-of-document id, then those of the text. Raises InputError when the tokenizer
    cannot represent the text."""
    ids = vocabulary.encode(text)
    if vocabulary.decode(ids) != text:
        raise InputError(f"prompt {text[:40]!r}: the vocabulary {vocabulary.name!r} cannot spell it")
    return np.r_[vocabulary.eos_id, ids].astype(np.int32)


def pieces_of_text(vocabulary: Tokenizer, ids: Iterable[int]) -> Iterator[str]:
    """The text of each id, whole characters only: bytes of a character that is not complete wait for the next id. The
    texts together are what `decode` gives for all the ids."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for i in ids:
        yield decoder.decode(piece_bytes(vocabulary, i))
    yield decoder.decode(b"", final=True)


def _prompt(prompt: str | None, prompt_file: Path | None) -> str:
    """The text to continue. Raises InputError when both are given, or when the file cannot be read."""
    if prompt is not None and prompt_file is not None:
        raise InputError("prompt and prompt_file: give one of them")
    if prompt_file is None:
        return prompt or ""
    try:
        content = sys.stdin.buffer.read() if str(prompt_file) == "-" else prompt_file.read_bytes()
        return content.decode("utf-8")
    except OSError as error:
        raise InputError(f"prompt_file = {str(prompt_file)!r}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise InputError(f"prompt_file = {str(prompt_file)!r}: is not UTF-8 (byte {error.start})") from None


def _print_sample(text: str, restored: TrainedModel, ids: Iterable[int]) -> list[int]:
    """Prints the prompt and the text of the ids as they come, on a terminal as it shows it. Returns the ids."""
    shown = printable if sys.stdout.isatty() else str
    generated: list[int] = []

    def recorded() -> Iterator[int]:
        for i in ids:
            generated.append(int(i))
            yield int(i)

    sys.stdout.write(shown(text))
    for piece_text in pieces_of_text(restored.tokenizer, recorded()):
        sys.stdout.write(shown(piece_text))
        sys.stdout.flush()
    print()
    return generated


def _facts(
    restored: TrainedModel,
    text: str,
    sampling: Sampling,
    seed: int,
    window: int,
    ids: np.ndarray,
    samples: list[list[int]],
    seconds: float,
) -> dict[str, Any]:
    """What --json writes. seconds: time of generation."""
    eos, decode = restored.tokenizer.eos_id, restored.tokenizer.decode
    return {
        "run": str(restored.folder),
        "run_id": restored.config.run_id,
        "step": restored.step,
        "tokens_trained": restored.tokens,
        "prompt": text,
        "prompt_ids": ids.tolist(),
        "sampling": {"temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p},
        "seed": seed,
        "window": window,
        "samples": [{"text": decode(sample), "ids": sample, "ended": sample[-1] == eos} for sample in samples],
        "seconds": seconds,
        "tokens_per_second": sum(map(len, samples)) / seconds,
    }
