"""The size and the training cost of a published model, line by line, each number with the product that gives it.

`scaling cost MODEL` prints it. Tests compare it with counts.py, which counts another way.
"""

from __future__ import annotations

from dataclasses import dataclass

from scaling.accounting.counts import peak_flops
from scaling.accounting.model_shapes import PublishedModel, PublishedTraining
from scaling.config.run_config import ModelConfig


@dataclass(frozen=True)
class Arithmetic:
    """One line of arithmetic. what: the quantity; product: the formula with its numbers, as text; value: in `unit`."""

    what: str
    product: str
    value: float
    unit: str

    @property
    def text(self) -> str:
        """The value with its unit: counts in full, other numbers to a few digits."""
        if self.unit == "GB":
            return f"{self.value:,.2f} GB"
        if isinstance(self.value, int):
            return f"{self.value:,}{' ' + self.unit if self.unit else ''}"
        return f"{self.value:.2e} {self.unit}" if self.value > 1e6 else f"{self.value:.3g} {self.unit}"


def published_arithmetic(shape: PublishedModel) -> tuple[Arithmetic, ...]:
    """Parameters, the size of their file, and, where the training is published, its FLOPs and hours."""
    counted = parameter_arithmetic(shape.model)
    total = int(counted[-1].value)
    file = Arithmetic("parameters file", f"{total:,} x 2 bytes", 2 * total / 1e9, "GB")
    return (*counted, file, *(training_arithmetic(total, shape.training) if shape.training else ()))


def parameter_arithmetic(c: ModelConfig) -> tuple[Arithmetic, ...]:
    """Trained numbers by group; the last line is their sum. M model width, V vocabulary, D head width, H query heads,
    K key-value heads, F feed-forward width, L layers."""
    M, V, D, H, K, F, L = c.width, c.vocab_size, c.head_width, c.heads, c.num_kv_heads, c.num_ff, c.depth
    embedding, attention, ff = V * M, 2 * M * D * (H + K), 3 * M * F
    norms, head = 2 * M + (2 * D if c.qk_norm else 0), 0 if c.tied else V * M
    layer = attention + ff + norms
    return (
        Arithmetic("embedding", f"V M = {V:,} x {M:,}", embedding, ""),
        Arithmetic("attention, a layer", f"2 M D (H + K) = 2 x {M:,} x {D} x ({H} + {K})", attention, ""),
        Arithmetic("feed-forward, a layer", f"3 M F = 3 x {M:,} x {F:,}", ff, ""),
        Arithmetic("norms, a layer", "2 M + 2 D" if c.qk_norm else "2 M", norms, ""),
        Arithmetic("layers", f"L = {L} x {layer:,}", L * layer, ""),
        Arithmetic("last norm", "M", M, ""),
        Arithmetic("head", "the embedding again" if c.tied else "V M", head, ""),
        Arithmetic("parameters", "embedding + layers + last norm + head", embedding + L * layer + M + head, ""),
    )


def training_arithmetic(total: int, training: PublishedTraining) -> tuple[Arithmetic, ...]:
    """FLOPs, GPU-hours and ratios of a published training. 6 N D: Kaplan et al. 2020, section 2.1, here with every
    parameter in N. total: number of parameters."""
    flops, hours = 6.0 * total * training.tokens, training.gpus * training.days * 24
    peak = peak_flops(training.chip, "bfloat16")
    assert peak is not None
    gigabytes = float(f"{2 * total / 1e9:.2g}")
    return (
        Arithmetic("training FLOPs", f"6 N D = 6 x {total:.4g} x {training.tokens:.2g} tokens", flops, "FLOPs"),
        Arithmetic("GPU-hours", f"{training.gpus:,} GPUs x {training.days} days x 24 hours", hours, ""),
        Arithmetic(
            "share of peak that this implies",
            f"FLOPs / (GPU-hours x 3,600 s x {peak:.3g} FLOP/s of an {training.chip})",
            100 * flops / (hours * 3600 * peak),
            "%",
        ),
        Arithmetic(
            "text to parameters",
            f"{training.text_bytes / 1e12:g} TB / {gigabytes:g} GB",
            int(training.text_bytes / 1e9 / gigabytes),
            "x",
        ),
    )
