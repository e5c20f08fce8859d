"""Counts of parameters, and of FLOPs under named conventions, from a config alone. A multiply-add is two FLOPs.

Tests compare them with the parameter tree and with XLA's cost analysis.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from scaling.accounting.chips import CHIPS
from scaling.config.run_config import ModelConfig

Convention = Literal["6nd", "exact", "exact_causal"]


@dataclass(frozen=True)
class ParamCounts:
    """Trained numbers by group. A tied head is counted once, as embedding. tied: whether the head is the embedding."""

    embedding: int
    blocks: int
    head: int
    norms: int
    tied: bool

    @property
    def total(self) -> int:
        """Every trained number."""
        return self.embedding + self.blocks + self.head + self.norms

    @property
    def non_embedding(self) -> int:
        """All but the input embedding (Kaplan et al. 2020 leave a tied head out as well)."""
        return self.total - self.embedding

    @property
    def matmul(self) -> int:
        """Numbers that a token is multiplied by: blocks and head, tied or not; neither norms nor the look-up."""
        return self.blocks + (self.embedding if self.tied else self.head)


def count_params(model: ModelConfig) -> ParamCounts:
    """Parameters of the decoder (scaling/model/decoder.py) by group."""
    M, D, F = model.width, model.head_width, model.num_ff
    # Queries and output: M x H D each; keys and values: M x K D each. SwiGLU: three matrices of M x F.
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
    """FLOPs of the forward pass for one token of a sequence of T = sequence_length.

    6nd: 2 params_matmul; the products of attention over positions are left out (Kaplan et al. 2020, section 2.1).
    exact: 2 params_matmul and both products of attention over all T positions, as XLA's reference kernel computes them.
    exact_causal: the same with half of the positions, which is what a causal model needs (PaLM's appendix B, Chowdhery
    et al. 2022, does not halve them).
    """
    dense = 2.0 * count_params(model).matmul
    # Scores and weighted values: 2 products of 2 T M FLOPs a token and layer.
    over_positions = 4.0 * model.depth * model.width * sequence_length
    return dense + {"6nd": 0.0, "exact": 1.0, "exact_causal": 0.5}[convention] * over_positions


def train_flops(model: ModelConfig, sequence_length: int, tokens: int, convention: Convention) -> float:
    """FLOPs of training on `tokens` tokens: the backward pass is twice the forward pass. Recomputation (remat) is not
    counted."""
    return 3.0 * forward_flops_per_token(model, sequence_length, convention) * tokens


# Dense bfloat16 peak of one device, FLOP/s, from the vendors' data sheets. A device has the first name that its
# device_kind contains.
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
    """Published peak of a device, in FLOP/s; None for CPUs and for products in float32. compute: dtype of products."""
    if compute != "bfloat16":
        return None
    return next((peak for name, peak in PEAK_BFLOAT16 if name in device_kind), None)
