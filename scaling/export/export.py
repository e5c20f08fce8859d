"""Exports a trained model in Hugging Face's layout, with a numpy script that runs it: `scaling export`.

    model.safetensors       float32, with the names and shapes of LlamaForCausalLM, or of Qwen3ForCausalLM for models
                            with qk_norm, which differs by a norm of each head's queries and keys before the rotation
    config.json             the shape, as transformers reads it; the key "scaling" identifies the run
    generation_config.json, tokenizer.json, tokenizer_config.json
    tokenizer.model         the SentencePiece model; absent for the byte tokenizer
    run.py                  the model in numpy: a copy of standalone_run.py
    forward.stablehlo       on request: (weights, tokens) -> logits, serialised by jax.export

The multipliers of residual branches and logits that mup and completep use are folded into the weights.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scaling.config.run_config import ModelConfig
from scaling.data.tokenizer import SentencePieceTokenizer
from scaling.errors import InputError
from scaling.export.tokenizer_json import TOKENIZER, TOKENIZER_CONFIG, tokenizer_files
from scaling.files import replace_folder
from scaling.model.decoder import Decoder, logits
from scaling.model.parametrization import logit_multiplier, residual_multiplier, scale
from scaling.model.weights import exported_name, is_per_layer, path_name
from scaling.training.restore import TrainedModel

STANDALONE_SCRIPT = Path(__file__).with_name("standalone_run.py")
WEIGHTS, STABLEHLO, SENTENCEPIECE, SCRIPT = "model.safetensors", "forward.stablehlo", "tokenizer.model", "run.py"
CONFIG, GENERATION_CONFIG = "config.json", "generation_config.json"
FILES = {WEIGHTS, STABLEHLO, SENTENCEPIECE, SCRIPT, CONFIG, GENERATION_CONFIG, TOKENIZER, TOKENIZER_CONFIG}
"""Every file that an export may hold."""
EXPORT_KEY = "scaling"
"""The key of config.json that identifies a folder as an export."""


def export_run(trained: TrainedModel, out: Path, *, stablehlo: bool = False) -> list[Path]:
    """Writes the files above into the folder `out` by rename, and returns their paths. An earlier export is replaced.

    stablehlo: whether to write forward.stablehlo too. Raises InputError when `out` is the current folder or holds
    anything but an export, a package is absent, or the tokenizer has no such format.
    """
    out = out.resolve()
    save_file = _import_package("safetensors.numpy", "safetensors").save_file
    _check_replaceable(out)
    tokenizer, config, params = trained.tokenizer, trained.model.config, jax.device_get(trained.params)
    files = {name: _json_bytes(value) for name, value in tokenizer_files(tokenizer).items()}
    files |= {CONFIG: _json_bytes(hugging_face_config(trained)), SCRIPT: STANDALONE_SCRIPT.read_bytes()}
    special_ids = {"bos_token_id": tokenizer.eos_id, "eos_token_id": tokenizer.eos_id, "pad_token_id": 0}
    files[GENERATION_CONFIG] = _json_bytes({**special_ids, "do_sample": False, "max_new_tokens": 256})
    if isinstance(tokenizer, SentencePieceTokenizer):
        files[SENTENCEPIECE] = Path(tokenizer.name).read_bytes()
    if stablehlo:
        files[STABLEHLO] = serialize_forward(config, trained.config.data.sequence_length)
    temporary = out.with_name(f".writing-{out.name}")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        weights = {name: np.ascontiguousarray(leaf) for name, leaf in to_hugging_face(params, config).items()}
        save_file(weights, str(temporary / WEIGHTS), metadata={"format": "pt"})
        for name, content in files.items():
            (temporary / name).write_bytes(content)
        replace_folder(temporary, out)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise InputError(f"out = {str(out)!r}: cannot be written ({error.strerror}); give another --out") from None
    return [out / name for name in sorted([WEIGHTS, *files])]


def to_hugging_face(params: Any, config: ModelConfig) -> dict[str, Any]:
    """Every weight under its name in Hugging Face's layout, multipliers folded in: those of the residual branches into
    the branch's last kernel, that of the logits into the final norm. Kernels are transposed there, [out, in]."""
    multiplier_of_path = {
        "final_norm/scale": logit_multiplier(config),
        "blocks/attention/o/kernel": residual_multiplier(config),
        "blocks/ff/down/kernel": residual_multiplier(config),
    }
    out: dict[str, Any] = {}
    for tree_path, weight in jax.tree_util.tree_leaves_with_path(params):
        path = path_name(tree_path)
        weight = scale(weight, multiplier_of_path.get(path, 1.0))
        for layer, layer_weight in enumerate(weight if is_per_layer(path) else [weight]):
            out[exported_name(path, layer)] = layer_weight.T if path.endswith("kernel") else layer_weight
    return out


def from_hugging_face(weights: Mapping[str, Any], config: ModelConfig) -> Any:
    """The inverse of `to_hugging_face`: the parameters of the model `without_multipliers(config)`."""

    def read_weight(tree_path: tuple[Any, ...], shape: jax.ShapeDtypeStruct) -> Any:
        path = path_name(tree_path)
        count = shape.shape[0] if is_per_layer(path) else 1
        layers = [weights[exported_name(path, layer)] for layer in range(count)]
        if path.endswith("kernel"):
            layers = [layer_weight.T for layer_weight in layers]
        return jnp.stack(layers) if is_per_layer(path) else layers[0]

    return jax.tree_util.tree_map_with_path(read_weight, param_shapes(Decoder(config)))


def param_shapes(model: Decoder) -> Any:
    """The parameter tree of a model, of shapes and dtypes alone."""
    return jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 2), jnp.int32))["params"]


def without_multipliers(config: ModelConfig) -> ModelConfig:
    """The same shape without multipliers of residual branches and logits; its weights contain them."""
    return dataclasses.replace(config, parametrization="standard")


def hugging_face_config(trained: TrainedModel) -> dict[str, Any]:
    """The contents of config.json. Its dtype is that of the weights; what the run computed in is under "scaling"."""
    c, data = trained.model.config, trained.config.data
    model_type = "qwen3" if c.qk_norm else "llama"
    return {
        "architectures": ["Qwen3ForCausalLM" if c.qk_norm else "LlamaForCausalLM"],
        "model_type": model_type,
        "vocab_size": c.vocab_size,
        "hidden_size": c.width,
        "intermediate_size": c.num_ff,
        "num_hidden_layers": c.depth,
        "num_attention_heads": c.heads,
        "num_key_value_heads": c.num_kv_heads,
        "head_dim": c.head_width,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "max_position_embeddings": data.sequence_length,
        "rms_norm_eps": c.norm_epsilon,
        "rope_theta": c.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": c.rope_theta},
        "tie_word_embeddings": c.tied,
        "bos_token_id": trained.tokenizer.eos_id,
        "eos_token_id": trained.tokenizer.eos_id,
        "pad_token_id": 0,
        "dtype": "float32",
        "torch_dtype": "float32",
        "use_cache": True,
        **({"use_sliding_window": False} if c.qk_norm else {"mlp_bias": False}),
        EXPORT_KEY: {
            "run_id": trained.config.run_id,
            "step": trained.step,
            "tokens": trained.tokens,
            "corpus": data.corpus,
            "compute": trained.config.precision.compute,
            "parametrization": c.parametrization,
        },
    }


def serialize_forward(config: ModelConfig, sequence_length: int) -> bytes:
    """The model's forward pass for CPUs, CUDA and TPUs, serialised by jax.export as StableHLO.

    `jax.export.deserialize(content).call(weights, tokens)` takes weights under Hugging Face's names and int32 tokens
    [b, sequence_length] for any b, and returns float32 logits [b, sequence_length, V]. Raises InputError when the
    package flatbuffers is absent.
    """
    _import_package("flatbuffers", "flatbuffers")
    from jax import export as jax_export

    model = Decoder(dataclasses.replace(without_multipliers(config), remat="none"))
    (rows,) = jax_export.symbolic_shape("b")
    weights = jax.eval_shape(lambda p: to_hugging_face(p, config), param_shapes(model))

    def forward(weights: Mapping[str, jax.Array], tokens_BT: jax.Array) -> jax.Array:
        return logits(model, from_hugging_face(weights, config), tokens_BT)

    export_shapes = jax_export.export(jax.jit(forward), platforms=("cpu", "cuda", "tpu"))
    return bytes(export_shapes(weights, jax.ShapeDtypeStruct((rows, sequence_length), jnp.int32)).serialize())


def _json_bytes(value: Any) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()


def _import_package(module: str, package: str) -> Any:
    """A module of an optional package. Raises InputError when it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise InputError(f"this export needs the package {package}: pip install 'scaling-laws[export]'") from None


def _check_replaceable(out: Path) -> None:
    """Raises InputError unless `out` is absent, empty, or an export with no other files in it."""
    if out == Path.cwd():
        raise InputError(f"out = {str(out)!r}: is the current folder: must be another, as it is replaced; change --out")
    if out.exists() and not out.is_dir():
        raise InputError(f"out = {str(out)!r}: is a file: must be a new folder or an earlier export; change --out")
    names = sorted(path.name for path in out.iterdir()) if out.exists() else []
    foreign = [name for name in names if name not in FILES]
    if names and (foreign or not _is_export(out)):
        raise InputError(
            f"out = {str(out)!r}: holds {(foreign or names)[0]!r}, which no export wrote: must be a new folder or an "
            "earlier export; change --out"
        )


def _is_export(folder: Path) -> bool:
    try:
        return EXPORT_KEY in json.loads((folder / CONFIG).read_text())
    except (OSError, ValueError):
        return False
