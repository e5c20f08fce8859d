"""The one table of the decoder's weights, and what is read from it by a weight's path.

A path is the keys of a weight in the parameter tree joined by slashes, such as `blocks/attention/q/kernel`. Sharding,
parametrization, the optimizer, counts by group and export all look their weight up here; a path that no row matches
is an error, so that a new weight cannot be forgotten in one of them.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any, Literal

import jax
from jax.sharding import PartitionSpec as P

from scaling.accounting import counts
from scaling.config.run_config import ModelConfig
from scaling.errors import InputError

Powers = tuple[float, float]
"""(a, b) stands for the factor m_N**a * m_L**b, where m_N = width / base_width and m_L = depth / base_depth."""
CONSTANT: Powers = (0.0, 0.0)

Group = Literal["embedding", "blocks", "head", "norms"]


@dataclass(frozen=True)
class WeightKind:
    r"""The weights whose path matches `pattern` as a whole, and what holds for all of them.

    group: the field of counts.ParamCounts that counts them; gains of norms are those without weight decay.
    spec: mesh axes of each array axis. Block weights have the layer axis L first, which is never sharded.
    exported: name in Hugging Face's layout; {layer} is the layer's number, \1 the first group of `pattern`.
    init, learning_rate, epsilon: how the initial standard deviation, AdamW's learning rate (its inverse: the decay) and
    Adam's epsilon follow width and depth; parametrization.py names the sources.
    muon: how the learning rate does under Muon; None for weights that AdamW trains there too.
    """

    pattern: str
    group: Group
    spec: P
    exported: str
    init: Powers = CONSTANT
    learning_rate: Powers = CONSTANT
    epsilon: Powers = CONSTANT
    muon: Powers | None = None


# The layout is Megatron's (Shoeybi et al. 2019): over tensor, kernels into a branch are split by their outputs and
# kernels out of it by their inputs, so that a branch needs one all-reduce. The other axis is split over fsdp. Gains of
# norms are small and replicated.
WEIGHT_KINDS: tuple[WeightKind, ...] = (
    WeightKind(
        pattern=r"embedding",  # [V, M]
        group="embedding",
        spec=P(None, ("fsdp", "tensor")),
        exported="model.embed_tokens.weight",
        init=(0.5, 0),
        epsilon=(-1, 0),
    ),
    WeightKind(
        pattern=r"blocks/attention/([qkv])/kernel",  # [L, M, H * D], of k and v [L, M, K * D]
        group="blocks",
        spec=P(None, "fsdp", "tensor"),
        exported=r"model.layers.{layer}.self_attn.\1_proj.weight",
        learning_rate=(-1, 0),
        epsilon=(-1, -1),
        muon=(-0.5, 0),
    ),
    WeightKind(
        pattern=r"blocks/attention/o/kernel",  # [L, H * D, M]
        group="blocks",
        spec=P(None, "tensor", "fsdp"),
        exported="model.layers.{layer}.self_attn.o_proj.weight",
        init=(0, 0.5),
        learning_rate=(-1, 0),
        epsilon=(-1, -1),
        muon=(-0.5, 0),
    ),
    WeightKind(
        pattern=r"blocks/ff/(gate|up)/kernel",  # [L, M, F]
        group="blocks",
        spec=P(None, "fsdp", "tensor"),
        exported=r"model.layers.{layer}.mlp.\1_proj.weight",
        learning_rate=(-1, 0),
        epsilon=(-1, -1),
        muon=(-0.5, 0),
    ),
    WeightKind(
        pattern=r"blocks/ff/down/kernel",  # [L, F, M]
        group="blocks",
        spec=P(None, "tensor", "fsdp"),
        exported="model.layers.{layer}.mlp.down_proj.weight",
        init=(0, 0.5),
        learning_rate=(-1, 0),
        epsilon=(-1, -1),
        muon=(-0.5, 0),
    ),
    WeightKind(
        pattern=r"blocks/attention/([qk]_norm)/scale",  # [L, D]
        group="norms",
        spec=P(),
        exported=r"model.layers.{layer}.self_attn.\1.weight",
        epsilon=(-1, -1),
    ),
    WeightKind(
        pattern=r"blocks/attention_norm/scale",  # [L, M]
        group="norms",
        spec=P(),
        exported="model.layers.{layer}.input_layernorm.weight",
        epsilon=(-1, -1),
    ),
    WeightKind(
        pattern=r"blocks/ff_norm/scale",  # [L, M]
        group="norms",
        spec=P(),
        exported="model.layers.{layer}.post_attention_layernorm.weight",
        epsilon=(-1, -1),
    ),
    WeightKind(
        pattern=r"final_norm/scale",  # [M]
        group="norms",
        spec=P(),
        exported="model.norm.weight",
        epsilon=(-1, 0),
    ),
    WeightKind(
        pattern=r"head/kernel",  # [M, V]
        group="head",
        spec=P(("fsdp", "tensor"), None),
        exported="lm_head.weight",
        init=(1, 0),
        epsilon=(-1, 0),
    ),
)


def path_name(path: tuple[Any, ...]) -> str:
    """A tree path as text, `blocks/attention/q/kernel`."""
    return "/".join(str(getattr(entry, "key", getattr(entry, "name", getattr(entry, "idx", entry)))) for entry in path)


def weight_kind(path: str) -> WeightKind:
    """The row of the table for one weight. Raises LookupError, with the path, unless exactly one row matches."""
    matches = [kind for kind in WEIGHT_KINDS if re.fullmatch(kind.pattern, path)]
    if len(matches) != 1:
        raise LookupError(
            f"weight {path}: {len(matches)} rows of the table of weights match, and exactly one must; "
            f"edit WEIGHT_KINDS in scaling/model/weights.py"
        )
    return matches[0]


def is_per_layer(path: str) -> bool:
    """Whether a weight has the layer axis L in front, and so one exported tensor a layer."""
    return path.startswith("blocks/")


def exported_name(path: str, layer: int = 0) -> str:
    """A weight's name in Hugging Face's layout; `layer` counts for weights of blocks. Raises LookupError."""
    kind = weight_kind(path)
    match = re.fullmatch(kind.pattern, path)
    assert match is not None
    return match.expand(kind.exported).format(layer=layer)


def count_weights(params: Any) -> counts.ParamCounts:
    """Numbers in a parameter tree, of arrays or their shapes, by group: what counts.count_params computes by formula.

    Raises LookupError on a weight that the table does not have.
    """
    sizes: Counter[str] = Counter(embedding=0, blocks=0, head=0, norms=0)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        sizes[weight_kind(path_name(path)).group] += math.prod(leaf.shape)
    return counts.ParamCounts(**sizes, tied=sizes["head"] == 0)


def check_param_counts(model: ModelConfig, params: Any) -> None:
    """Raises InputError, with both numbers of each group, where the groups of a real parameter tree are not those that
    counts.count_params computes: the plan and the results table would have counts of another model."""
    from_tree, from_formula = asdict(count_weights(params)), asdict(counts.count_params(model))
    if from_tree != from_formula:
        differences = [
            f"{group} = {count} in the parameter tree and {from_formula[group]} by the formula"
            for group, count in from_tree.items()
            if count != from_formula[group]
        ]
        raise InputError(
            f"parameters of the model: {', '.join(differences)}: must be equal; edit count_params() in "
            "scaling/accounting/counts.py, and plan again"
        )
