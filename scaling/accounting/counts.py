"""Parameters by group and FLOPs, under named conventions.

Every count is a function of the config alone and is checked in tests against the parameter tree and against XLA's
own cost analysis. A multiply-add is two FLOPs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from scaling.accounting.chips import CHIPS
from scaling.config.run_config import ModelConfig

Convention = Literal["6nd", "exact", "exact_causal"]


@dataclass(frozen=True)
class ParamCounts:
    """Trained numbers by group. A tied head is counted once, as embedding."""

    embedding: int
    blocks: int
    head: int
    norms: int
    tied: bool

    @property
    def total(self) -> int:
        return self.embedding + self.blocks + self.head + self.norms

    @property
    def non_embedding(self) -> int:
        """Total less the input embedding (Kaplan et al. 2020 leave the tied head out as well)."""
        return self.total - self.embedding

    @property
    def matmul(self) -> int:
        """Numbers that each token is multiplied by: blocks and head, tied or not; neither norms nor the look-up."""
        return self.blocks + (self.embedding if self.tied else self.head)


def count_params(model: ModelConfig) -> ParamCounts:
    """Parameters of the decoder in model.py, by group."""
    M, D, F = model.width, model.head_width, model.num_ff
    attention = M * D * (2 * model.heads + 2 * model.num_kv_heads)
    qk_norms = 2 * D if model.qk_norm else 0
    return ParamCounts(
        embedding=model.vocab_size * M,
        blocks=model.depth * (attention + 3 * M * F),
        head=0 if model.tied else model.vocab_size * M,
        norms=model.depth * (2 * M + qk_norms) + M,
        tied=model.tied,
    )


def forward_flops_per_token(model: ModelConfig, sequence_length: int, convention: Convention) -> float:
    """FLOPs of the forward pass for one token of a sequence.

    6nd: 2 * params.matmul, attention's products over positions left out (Kaplan et al. 2020, section 2.1).
    exact: 2 * params.matmul plus both products of attention over all T positions, as XLA's reference kernel runs them.
    exact_causal: the same with half of the positions, as a causal kernel needs; PaLM's appendix B halves nothing.
    """
    dense = 2.0 * count_params(model).matmul
    over_positions = 4.0 * model.depth * model.width * sequence_length
    return dense + {"6nd": 0.0, "exact": 1.0, "exact_causal": 0.5}[convention] * over_positions


def train_flops(model: ModelConfig, sequence_length: int, tokens: int, convention: Convention) -> float:
    """FLOPs of training on `tokens`: forward once, backward twice. Recomputation (remat) is not counted."""
    return 3.0 * forward_flops_per_token(model, sequence_length, convention) * tokens


# Dense bfloat16 peak of one chip, FLOP/s, from the vendors' data sheets; the first that a device kind contains.
PEAK_BFLOAT16: tuple[tuple[str, float], ...] = (
    ("B200", 2250e12),
    ("H200", 989e12),
    ("H100 PCIe", 756e12),
    ("H100 NVL", 835e12),
    ("H100", 989e12),
    ("A100", 312e12),
    ("TPU v4 lite", 138e12),
    ("TPU v4", CHIPS["v4"].peak_bfloat16),
    ("TPU v5 lite", CHIPS["v5e"].peak_bfloat16),
    ("TPU v5p", CHIPS["v5p"].peak_bfloat16),
    ("TPU v5", CHIPS["v5p"].peak_bfloat16),
    ("TPU v6 lite", CHIPS["v6e"].peak_bfloat16),
)


def peak_flops(device_kind: str, compute: str) -> float | None:
    """Published peak of a device in FLOP/s; None where none is published (CPUs, products in float32)."""
    if compute != "bfloat16":
        return None
    return next((peak for name, peak in PEAK_BFLOAT16 if name in device_kind), None)
