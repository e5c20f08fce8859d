"""The parts of a run's config: frozen dataclasses, checked when built. config.py puts them together.

A field whose metadata says `hashed=False` (`free`) does not change what a run learns.

Not in the design's list of modules: config.py would pass 300 lines.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from scaling.config.fields import check_types, require, unhashed_field


@dataclass(frozen=True)
class ModelConfig:
    """A Llama-shaped decoder. Shapes in units of elements.

    kv_heads: key-value heads (grouped-query attention); None means `heads`.
    ff_width: hidden width of SwiGLU; None means 8/3 of `width`, rounded up to a multiple of 8 (Touvron 2023).
    remat: what the backward pass recomputes: nothing, all but matrix products, or everything.
    unroll: layers unrolled per scan step; None means all on a CPU without remat, which CPUs undo in flat code, else 1.
    attention: the kernel (attention.py); "auto" takes the fastest that can run, and the run records which that was.
    parametrization: how initial weights, learning rates and multipliers follow width and depth (parametrization.py);
    base_width, base_depth: the size at which "mup" and "completep" equal "standard", where a learning rate is tuned.
    """

    vocab_size: int = 259
    width: int = 128
    depth: int = 4
    heads: int = 4
    kv_heads: int | None = None
    ff_width: int | None = None
    qk_norm: bool = False
    tied: bool = False
    rope_theta: float = 10_000.0
    norm_epsilon: float = 1e-6
    parametrization: Literal["standard", "mup", "completep"] = "standard"
    base_width: int = 64
    base_depth: int = 4
    remat: Literal["none", "dots", "full"] = unhashed_field("none")
    unroll: int | None = unhashed_field(None)
    attention: Literal["auto", "xla", "blocked", "cudnn", "splash"] = unhashed_field("auto")

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("vocab_size", "width", "depth", "heads", "rope_theta", "norm_epsilon", "base_width", "base_depth"):
            require(getattr(self, name) > 0, self, name, "more than 0")
        for name in ("kv_heads", "ff_width", "unroll"):
            require((getattr(self, name) or 1) > 0 and getattr(self, name) != 0, self, name, "1 or more, or null")
        require(self.width % self.heads == 0, self, "heads", f"a divisor of width={self.width}")
        require(self.head_width % 2 == 0, self, "heads", f"such that width/heads={self.head_width} is even (RoPE)")
        require(self.heads % self.num_kv_heads == 0, self, "kv_heads", f"a divisor of heads={self.heads}")

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    @property
    def num_kv_heads(self) -> int:
        return self.kv_heads if self.kv_heads is not None else self.heads

    @property
    def num_ff(self) -> int:
        return self.ff_width if self.ff_width is not None else 8 * math.ceil(self.width / 3)


@dataclass(frozen=True)
class DataConfig:
    """Which tokens, in which batches.

    order: seed of the order of batches; None means the run's seed, which also draws the initial weights.
    corpus: name of a prepared corpus (`scaling data list`). vocabulary: "byte" or the path of a SentencePiece model.
    fingerprint: content hash of the prepared shards; empty means whatever is prepared. A plan fills it in.
    unique_tokens: train on the first so many tokens of the corpus alone, again and again; None means on all of it.
    batch_sequences: sequences per optimizer step, over all devices. microbatch_sequences: sequences per gradient
    computation (gradient accumulation when smaller); None means the whole batch.
    """

    corpus: str = "stdlib"
    vocabulary: str = "byte"
    fingerprint: str = ""
    unique_tokens: int | None = None
    sequence_length: int = 128
    batch_sequences: int = 16
    order: int | None = None
    microbatch_sequences: int | None = unhashed_field(None)
    directory: str = unhashed_field("out/corpora")

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("sequence_length", "batch_sequences"):
            require(getattr(self, name) > 0, self, name, "1 or more")
        require(self.order is None or self.order >= 0, self, "order", "0 or more, or null")
        least = self.sequence_length
        enough = self.unique_tokens is None or self.unique_tokens >= least
        require(enough, self, "unique_tokens", f"at least sequence_length={least}, or null")
        require(bool(self.corpus), self, "corpus", "the name of a corpus")
        micro = self.microbatch_sequences
        require(
            micro is None or (micro > 0 and self.batch_sequences % micro == 0),
            self,
            "microbatch_sequences",
            f"a divisor of batch_sequences={self.batch_sequences}",
        )

    @property
    def batch_tokens(self) -> int:
        return self.batch_sequences * self.sequence_length


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (Loshchilov & Hutter 2019), or Muon for the matrices of blocks and AdamW for the rest (Jordan et al. 2024).

    Decay is decoupled: learning_rate * weight_decay * weight, matrices only. momentum: of Muon.
    """

    kind: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 3e-3
    beta1: float = 0.9
    beta2: float = 0.95
    momentum: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    z_loss: float = 1e-4

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("learning_rate", "epsilon", "clip_norm"):
            require(getattr(self, name) > 0, self, name, "more than 0")
        for name in ("weight_decay", "z_loss"):
            require(getattr(self, name) >= 0, self, name, "0 or more")
        for name in ("beta1", "beta2", "momentum"):
            require(0 <= getattr(self, name) < 1, self, name, "in [0, 1)")


@dataclass(frozen=True)
class ScheduleConfig:
    """Learning rate as a function of tokens seen, times `optimizer.learning_rate`.

    Linear warm-up over `warmup_tokens`; then `cosine` to `final_fraction` at the budget, or `wsd`: stable, then a
    linear decay to `final_fraction` over the last `cooldown_fraction` of the budget (Hu et al. 2024, MiniCPM).
    """

    kind: Literal["cosine", "wsd"] = "cosine"
    warmup_tokens: int = 0
    cooldown_fraction: float = 0.2
    final_fraction: float = 0.0

    def __post_init__(self) -> None:
        check_types(self)
        require(self.warmup_tokens >= 0, self, "warmup_tokens", "0 or more")
        require(0 <= self.cooldown_fraction <= 1, self, "cooldown_fraction", "in [0, 1]")
        require(0 <= self.final_fraction <= 1, self, "final_fraction", "in [0, 1]")


@dataclass(frozen=True)
class PrecisionConfig:
    """Master weights, softmax and loss are float32 always; `compute` is the dtype of the matrix products."""

    compute: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        check_types(self)


@dataclass(frozen=True)
class MeshConfig:
    """Devices per axis: batch over data and fsdp, weights over fsdp and tensor. data None takes the rest."""

    data: int | None = None
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("fsdp", "tensor"):
            require(getattr(self, name) > 0, self, name, "1 or more")
        require(self.data is None or self.data > 0, self, "data", "1 or more, or null")


@dataclass(frozen=True)
class MeasureConfig:
    """validation_tokens: size of the fixed validation set (its first tokens). every_tokens: cadence of
    measuring; None means only at the end. checkpoint_every_tokens: None means ten times a run. keep: checkpoints
    kept. branch_at_steps: steps whose state is kept for other runs to branch from (sweeps/planning/plan.py)."""

    validation_tokens: int = 262_144
    every_tokens: int | None = unhashed_field(None)
    log_every_steps: int = unhashed_field(10)
    checkpoint_every_tokens: int | None = unhashed_field(None)
    keep: int = unhashed_field(1)
    branch_at_steps: tuple[int, ...] = unhashed_field(())

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("validation_tokens", "log_every_steps", "keep"):
            require(getattr(self, name) > 0, self, name, "1 or more")
        for name in ("every_tokens", "checkpoint_every_tokens"):
            require(getattr(self, name) is None or getattr(self, name) > 0, self, name, "1 or more, or null")
