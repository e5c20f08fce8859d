"""A trained model as files that others read: weights in Hugging Face's layout, and one numpy file that runs them.

    model.safetensors       float32, names and shapes of LlamaForCausalLM, or of Qwen3ForCausalLM where queries and
                            keys are normalised: the same model with that norm, over each head, before the rotation
    config.json             the shape, as transformers reads it; under "scaling", which run it is
    generation_config.json, tokenizer.json, tokenizer_config.json
    tokenizer.model         a SentencePiece vocabulary as it was trained; absent for bytes
    run.py                  the model in numpy: a copy of standalone_run.py
    forward.stablehlo       if asked for: (weights, tokens) -> logits, as jax.export serialises it

What mup and completep multiply residual branches and logits by is folded into the weights. Not in the design's list of
modules: the design names the verb alone.
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
from scaling.export.tokenizer_json import tokenizer_files
from scaling.files import replace_folder
from scaling.model.decoder import Decoder, logits
from scaling.model.parametrization import logit_multiplier, residual_multiplier, scale
from scaling.model.weights import exported_name, is_per_layer, path_name
from scaling.training.restore import TrainedModel

RUN_FILE = Path(__file__).with_name("standalone_run.py")
WEIGHTS, STABLEHLO, SENTENCEPIECE = "model.safetensors", "forward.stablehlo", "tokenizer.model"
EXPORT_KEY = "scaling"
"""The key of config.json by which a folder is known as an export."""


def export_run(restored: TrainedModel, out: Path, *, stablehlo: bool = False) -> list[Path]:
    """Writes the files above into `out`, whole or not at all, and returns them. A folder that an export wrote before is
    replaced.

    Raises InputError when `out` holds anything else or is the current folder, a package is absent, or the vocabulary
    cannot be written.
    """
    out = out.resolve()
    save_file = _package("safetensors.numpy", "safetensors").save_file
    _check_free(out)
    vocabulary, config, params = restored.tokenizer, restored.model.config, jax.device_get(restored.params)
    files = {name: _json(value) for name, value in tokenizer_files(vocabulary).items()}
    files |= {"config.json": _json(hugging_face_config(restored)), "run.py": RUN_FILE.read_bytes()}
    special = {"bos_token_id": vocabulary.eos_id, "eos_token_id": vocabulary.eos_id, "pad_token_id": 0}
    files["generation_config.json"] = _json({**special, "do_sample": False, "max_new_tokens": 256})
    if isinstance(vocabulary, SentencePieceTokenizer):
        files[SENTENCEPIECE] = Path(vocabulary.name).read_bytes()
    if stablehlo:
        files[STABLEHLO] = serialize_forward(config, restored.config.data.sequence_length)
    part = out.with_name(f".writing-{out.name}")
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        weights = {name: np.ascontiguousarray(leaf) for name, leaf in to_hugging_face(params, config).items()}
        save_file(weights, str(part / WEIGHTS), metadata={"format": "pt"})
        for name, content in files.items():
            (part / name).write_bytes(content)
        replace_folder(part, out)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        raise InputError(f"out = {str(out)!r}: cannot be written ({error.strerror})") from None
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
    """The model whose weights hold all that multiplies them."""
    return dataclasses.replace(config, parametrization="standard")


def hugging_face_config(restored: TrainedModel) -> dict[str, Any]:
    """config.json. The dtype is that of the weights; a run that computed in bfloat16 says so under "scaling"."""
    c, data = restored.model.config, restored.config.data
    kind = "qwen3" if c.qk_norm else "llama"
    return {
        "architectures": ["Qwen3ForCausalLM" if c.qk_norm else "LlamaForCausalLM"],
        "model_type": kind,
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
        "bos_token_id": restored.tokenizer.eos_id,
        "eos_token_id": restored.tokenizer.eos_id,
        "pad_token_id": 0,
        "dtype": "float32",
        "torch_dtype": "float32",
        "use_cache": True,
        **({"use_sliding_window": False} if c.qk_norm else {"mlp_bias": False}),
        EXPORT_KEY: {
            "run_id": restored.config.run_id,
            "step": restored.step,
            "tokens": restored.tokens,
            "corpus": data.corpus,
            "compute": restored.config.precision.compute,
            "parametrization": c.parametrization,
        },
    }


def serialize_forward(config: ModelConfig, length: int) -> bytes:
    """(weights under Hugging Face's names, int32 [b, length]) -> float32 logits [b, length, V], for any b, on CPUs,
    CUDA and TPUs, serialised by jax.export: `jax.export.deserialize(content).call(weights, tokens)`.

    Raises InputError when the package flatbuffers is absent.
    """
    _package("flatbuffers", "flatbuffers")
    from jax import export as exporting

    model = Decoder(dataclasses.replace(without_multipliers(config), remat="none"))
    (rows,) = exporting.symbolic_shape("b")
    weights = jax.eval_shape(lambda p: to_hugging_face(p, config), param_shapes(model))

    def run(weights: Mapping[str, jax.Array], tokens_BT: jax.Array) -> jax.Array:
        return logits(model, from_hugging_face(weights, config), tokens_BT)

    made = exporting.export(jax.jit(run), platforms=("cpu", "cuda", "tpu"))
    return bytes(made(weights, jax.ShapeDtypeStruct((rows, length), jnp.int32)).serialize())


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()


def _package(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise InputError(f"this export needs the package {package}: pip install 'scaling-laws[export]'") from None


def _check_free(out: Path) -> None:
    """Raises InputError unless `out` is absent, empty, or an export and nothing else, and may be replaced."""
    if out == Path.cwd():
        raise InputError(f"out = {str(out)!r}: is the current folder, which cannot be replaced; give one inside it")
    if out.exists() and not out.is_dir():
        raise InputError(f"out = {str(out)!r}: is a file; it must be a folder that is not there yet, or an export")
    held = sorted(path.name for path in out.iterdir()) if out.exists() else []
    ours = {WEIGHTS, STABLEHLO, SENTENCEPIECE, "run.py", "config.json", "generation_config.json"}
    ours |= {"tokenizer.json", "tokenizer_config.json"}
    strange = [name for name in held if name not in ours]
    if held and (strange or not _is_export(out)):
        what = strange[0] if strange else held[0]
        raise InputError(
            f"out = {str(out)!r}: holds {what!r}, which no export wrote; give a folder that is not there yet"
        )


def _is_export(folder: Path) -> bool:
    try:
        return EXPORT_KEY in json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return False
