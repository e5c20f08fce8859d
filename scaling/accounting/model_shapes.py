"""Published models as data: their shapes, and how they were trained. Used to compute costs and to compile ahead."""

from __future__ import annotations

from dataclasses import dataclass

from scaling.config.run_config import ModelConfig
from scaling.errors import InputError, suggest_name


@dataclass(frozen=True)
class PublishedTraining:
    """How a published model was trained: tokens seen, bytes of text, GPUs, days, and the source."""

    tokens: int
    text_bytes: int
    gpus: int
    days: int
    chip: str
    source: str


@dataclass(frozen=True)
class PublishedModel:
    """A model, the sequence length that it was trained at, the source, and its training where that is published."""

    model: ModelConfig
    sequence_length: int
    source: str
    training: PublishedTraining | None = None


LLAMA_2 = "Touvron et al. 2023 (Llama 2), table 1, and the config.json published with the weights"
LLAMA_2_70B_TRAINING = PublishedTraining(
    tokens=2_000_000_000_000,
    text_bytes=10_000_000_000_000,
    gpus=6_000,
    days=12,
    chip="A100",
    source="tokens and chip: Touvron et al. 2023 (Llama 2), sections 2.1 and 2.2.1; the rest, rounded: Karpathy 2023 "
    "(Intro to Large Language Models)",
)
LLAMA_3 = (
    "Grattafiori et al. 2024 (The Llama 3 herd of models), table 3, and the config.json published with the weights"
)
LLAMA_3_2 = "Meta's model card of Llama 3.2, and the config.json published with the weights"
GPT_2 = "ours: widths and depths of Brown et al. 2020, table 2.1, with SwiGLU and RoPE, vocabulary a multiple of 128"


def _llama_2(
    width: int,
    depth: int,
    heads: int,
    ff_width: int,
    kv_heads: int | None = None,
    training: PublishedTraining | None = None,
) -> PublishedModel:
    model = ModelConfig(
        vocab_size=32_000,
        width=width,
        depth=depth,
        heads=heads,
        kv_heads=kv_heads,
        ff_width=ff_width,
        norm_epsilon=1e-5,
    )
    return PublishedModel(model, 4096, LLAMA_2, training)


def _llama_3(width: int, depth: int, ff_width: int, tied: bool, source: str) -> PublishedModel:
    model = ModelConfig(
        vocab_size=128_256,
        width=width,
        depth=depth,
        heads=32,
        kv_heads=8,
        ff_width=ff_width,
        tied=tied,
        rope_theta=500_000.0,
        norm_epsilon=1e-5,
    )
    return PublishedModel(model, 8192, source)


def _gpt_2(width: int, depth: int, head_width: int = 64) -> PublishedModel:
    model = ModelConfig(vocab_size=50_304, width=width, depth=depth, heads=width // head_width, tied=True)
    return PublishedModel(model, 1024, GPT_2)


PUBLISHED_MODELS: dict[str, PublishedModel] = {
    "gpt-50m": _gpt_2(512, 8),
    "gpt-130m": _gpt_2(768, 12),
    "gpt-350m": _gpt_2(1024, 24),
    "gpt-1300m": _gpt_2(2048, 24, head_width=128),
    "llama-3.2-1b": _llama_3(2048, 16, 8192, True, LLAMA_3_2),
    "llama-3-8b": _llama_3(4096, 32, 14_336, False, LLAMA_3),
    "llama-2-7b": _llama_2(4096, 32, 32, 11_008),
    "llama-2-13b": _llama_2(5120, 40, 40, 13_824),
    "llama-2-70b": _llama_2(8192, 80, 64, 28_672, kv_heads=8, training=LLAMA_2_70B_TRAINING),
}


def find_published_model(name: str) -> PublishedModel:
    """The published model of a name. Raises InputError, with the nearest name, when there is none."""
    if name not in PUBLISHED_MODELS:
        raise InputError(f"unknown model {name}{suggest_name(name, PUBLISHED_MODELS)}")
    return PUBLISHED_MODELS[name]
