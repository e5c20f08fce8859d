"""The sections of a run's config: frozen dataclasses, checked when they are built. run_config.py puts them together.

An `unhashed_field` does not change what a run learns; a new field that does is a `later_field`. The texts under
`Attributes` are the help of the flags.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from scaling.config.fields import check_seed, check_types, later_field, require, require_path, unhashed_field
from scaling.files import refuse_url


@dataclass(frozen=True)
class ModelConfig:
    """A decoder of Llama's shape: RMSNorm before each branch, RoPE, SwiGLU, no biases (Touvron et al. 2023).

    Attributes:
        vocab_size: ids of the vocabulary.
        width: model width M, the size of the residual stream.
        depth: number of layers L.
        heads: query heads H; must divide `width`, with an even head width (RoPE).
        kv_heads: key-value heads K (grouped-query attention); must divide `heads`. None means `heads`.
        ff_width: hidden width F of SwiGLU; None means 8/3 of `width`, rounded up to a multiple of 8.
        qk_norm: normalise queries and keys (RMSNorm over the head width).
        tied: use the embedding as the head, too.
        rope_theta: base of the rotary frequencies.
        norm_epsilon: added to the mean square in RMSNorm.
        parametrization: how initial weights, learning rates and multipliers follow width and depth
            (scaling/model/parametrization.py).
        base_width: width at which mup and completep equal standard, where a learning rate is tuned.
        base_depth: depth at which completep equals standard.
        remat: what the backward pass recomputes to save memory: nothing, all but matrix products, or everything.
        unroll: layers unrolled in each step of the scan over layers; None means all of them on a CPU without remat,
            which keeps XLA's CPU code fast, and else 1.
        attention: attention kernel; auto takes the fastest that can run, and environment.json records which it was.
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
        """Width D of a head."""
        return self.width // self.heads

    @property
    def num_kv_heads(self) -> int:
        """Key-value heads K, with the default resolved."""
        return self.kv_heads if self.kv_heads is not None else self.heads

    @property
    def num_ff(self) -> int:
        """Feed-forward width F, with the default resolved."""
        return self.ff_width if self.ff_width is not None else 8 * math.ceil(self.width / 3)


@dataclass(frozen=True)
class DataConfig:
    """The tokens that a run trains on, and how they are cut into batches.

    Attributes:
        corpus: name of a prepared corpus (`scaling data list`).
        vocabulary: "byte", or the path of a SentencePiece model.
        fingerprint: content hash that the prepared shards must have; empty accepts any. A plan fills it in.
        unique_tokens: train on the first so many tokens of the corpus only, repeatedly; None means on all of it.
        sequence_length: tokens T of a sequence.
        batch_sequences: sequences of an optimizer step, over all devices.
        order: seed of the order of batches, below 2^32; None means the run's seed.
        microbatch_sequences: sequences of one gradient computation, over all devices; where smaller than the batch,
            gradients are accumulated. Must divide batch_sequences. None means the whole batch.
        directory: folder of the prepared corpora.
    """

    corpus: str = "stdlib"
    vocabulary: str = "byte"
    fingerprint: str = ""
    unique_tokens: int | None = later_field(None)
    sequence_length: int = 128
    batch_sequences: int = 16
    order: int | None = None
    microbatch_sequences: int | None = unhashed_field(None)
    directory: str = unhashed_field("out/corpora")

    def __post_init__(self) -> None:
        check_seed("DataConfig.order", self.order)
        check_types(self)
        for name in ("sequence_length", "batch_sequences"):
            require(getattr(self, name) > 0, self, name, "1 or more")
        for name in ("directory", "vocabulary"):
            refuse_url(f"DataConfig.{name}", getattr(self, name))
            require_path(self, name)
        is_enough = self.unique_tokens is None or self.unique_tokens >= self.sequence_length
        require(is_enough, self, "unique_tokens", f"at least sequence_length={self.sequence_length}, or null")
        require(bool(self.corpus), self, "corpus", "the name of a corpus")
        microbatch = self.microbatch_sequences
        require(
            microbatch is None or (microbatch > 0 and self.batch_sequences % microbatch == 0),
            self,
            "microbatch_sequences",
            f"a divisor of batch_sequences={self.batch_sequences}",
        )

    @property
    def batch_tokens(self) -> int:
        """Tokens of an optimizer step."""
        return self.batch_sequences * self.sequence_length


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (Loshchilov & Hutter 2019), or Muon for the matrices of blocks and AdamW for the rest (Jordan et al. 2024).

    Attributes:
        kind: adamw or muon.
        learning_rate: peak learning rate.
        beta1: decay of Adam's first moment, per step.
        beta2: decay of Adam's second moment, per step.
        momentum: decay of Muon's momentum, per step.
        epsilon: added to the root of Adam's second moment.
        weight_decay: decoupled decay of matrices: learning_rate * weight_decay * weight is subtracted in a step.
        clip_norm: global norm to which larger gradients are scaled down.
        z_loss: weight of the squared log-partition in the loss (Chowdhery et al. 2022, PaLM).
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
    """The learning rate as a function of tokens seen, a multiple of `optimizer.learning_rate`.

    After a linear warm-up, cosine decays to `final_fraction` at the last token; wsd (warm-up, stable, decay) stays
    constant and then decays linearly (Hu et al. 2024, MiniCPM).

    Attributes:
        kind: cosine or wsd.
        warmup_tokens: tokens of the linear warm-up.
        cooldown_fraction: fraction of the training tokens over which wsd decays.
        final_fraction: fraction of the peak learning rate that is left at the end.
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
    """Weights, optimizer state, softmax and loss are always float32.

    Attributes:
        compute: dtype of the inputs of matrix products.
    """

    compute: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        check_types(self)


@dataclass(frozen=True)
class MeshConfig:
    """The mesh of devices: batches are split over data and fsdp, weights over fsdp and tensor.

    Attributes:
        data: devices along the data axis; None takes all that the other axes leave.
        fsdp: devices along the axis that splits both batches and weights.
        tensor: devices along the axis that splits weights within a layer.
    """

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
    """How often a run is validated, logged and saved.

    Attributes:
        validation_tokens: size of the validation set: the first tokens of the held-out split.
        every_tokens: training tokens between validations; None means only at the end.
        log_every_steps: steps between lines of metrics.jsonl.
        checkpoint_every_tokens: training tokens between checkpoints; None means a tenth of the run.
        keep: number of latest checkpoints that are kept.
        branch_at_steps: steps whose state is kept for other runs to branch from; a plan fills it in.
    """

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
