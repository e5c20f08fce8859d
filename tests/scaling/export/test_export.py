"""Exports: the numpy script, StableHLO and transformers compute what the model computes, token by token."""

from __future__ import annotations

import functools
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaling.commands.generate import prompt_ids
from scaling.config.run_config import DataConfig, ModelConfig, RunConfig
from scaling.data.tokenizer import ByteTokenizer, SentencePieceTokenizer, load_tokenizer, train_sentencepiece
from scaling.errors import InputError
from scaling.export.export import STANDALONE_SCRIPT, export_run, from_hugging_face, to_hugging_face, without_multipliers
from scaling.generation.decode import generate, stream
from scaling.model.decoder import Decoder, logits
from scaling.training.restore import TrainedModel, restore_model
from scaling.training.train import train
from tests.conftest import ROOT, in_process
from tests.support.transformers_env import COMMAND, interpreter

pytestmark = pytest.mark.usefixtures("unoptimized_programs")

pytest.importorskip("safetensors", reason="pip install 'scaling-laws[export]'")

SHAPES = {
    "llama": {"kv_heads": 2, "tied": True, "parametrization": "mup", "base_width": 16},
    "qwen3": {"qk_norm": True, "parametrization": "completep", "base_width": 16, "base_depth": 1},
}
CODE = [f"def f{n}(self, value_{n % 7}):\n    return self.value + {n * n}  # words\n" for n in range(400)]
TEXTS = ["", "def main(self):\n", "  two  spaces ", "é😀\ufeff\x00", "</s> <unk> <0x41> <s>", "a▁b", "x" * 300]


plain_logits = jax.jit(logits, static_argnums=0)


@functools.cache
def random_run(vocabulary: str = "byte", gain: float = 2.0, **shape: Any) -> TrainedModel:
    """An untrained run whose weights are scaled up, so that its tokens differ."""
    model = ModelConfig(width=32, depth=2, heads=4, vocab_size=load_tokenizer(vocabulary).size, **shape)
    config = RunConfig(model=model, data=DataConfig(vocabulary=vocabulary, sequence_length=48))
    decoder = Decoder(model)
    params = jax.jit(decoder.init)(jax.random.key(8), jnp.zeros((1, 2), jnp.int32))["params"]
    return TrainedModel(
        Path(), config, 0, decoder, jax.tree.map(lambda x: gain * x, params), load_tokenizer(vocabulary)
    )


@pytest.fixture(scope="module")
def trained(tiny: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert train(tiny, folder, quiet=True) == "done"
    return folder


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> SentencePieceTokenizer:
    pytest.importorskip("sentencepiece")
    return train_sentencepiece(CODE, 400, tmp_path_factory.mktemp("vocabulary") / "code.model")


def load_script(folder: Path) -> ModuleType:
    """run.py as a module."""
    spec = importlib.util.spec_from_file_location(f"run_{abs(hash(folder))}", folder / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def greedy(restored: TrainedModel, text: str) -> list[int]:
    """Greedy decoding beyond the training length with further rotations, as in transformers."""
    ids = prompt_ids(restored.tokenizer, text)
    return generate(restored.model, restored.params, [ids], 256, stop_id=restored.tokenizer.eos_id)[0].tolist()


def stream_greedy(restored: TrainedModel, text: str) -> list[int]:
    """Greedy decoding with a window, as in `scaling generate --temperature 0`."""
    ids, trained = prompt_ids(restored.tokenizer, text), restored.config.data.sequence_length
    return list(stream(restored.model, restored.params, ids, 256, trained, stop_id=restored.tokenizer.eos_id))


def run(folder: Path, *arguments: str) -> str:
    """Runs run.py as its user does: from another folder, without this repository on the path."""
    command = [sys.executable, "-I", str(folder / "run.py"), *arguments]
    process = subprocess.run(command, capture_output=True, cwd=folder.parent, timeout=300)
    assert process.returncode == 0, process.stderr.decode()
    assert process.stderr == b""
    return process.stdout.decode()


def test_none_of_256_tokens_of_a_trained_run_differ(trained: Path, tmp_path: Path) -> None:
    restored = restore_model(trained)
    export_run(restored, tmp_path / "out")
    expected = stream_greedy(restored, "abc")
    assert len(expected) == 256
    assert [int(i) for i in run(tmp_path / "out", "abc", "--ids").split()] == expected
    assert run(tmp_path / "out", "abc") == "abc" + restored.tokenizer.decode(expected) + "\n"


@pytest.mark.parametrize("shape", SHAPES)
def test_none_of_256_tokens_of_a_random_model_differ(shape: str, tmp_path: Path) -> None:
    restored = random_run(**SHAPES[shape])
    export_run(restored, tmp_path / "out")
    script, expected = load_script(tmp_path / "out"), greedy(restored, "def")
    assert len(expected) == 256
    assert len(set(expected)) > 10
    ids = prompt_ids(restored.tokenizer, "def").tolist()
    assert list(script.generate(ids, 256, window=512)) == expected
    assert list(script.generate(ids, 40, use_cache=False)) == expected[:40]
    windows = stream_greedy(restored, "def")
    assert list(script.generate(ids, 256)) == windows != expected


def test_the_script_computes_the_logits_of_the_model(tmp_path: Path) -> None:
    restored = random_run(gain=1.0, **SHAPES["llama"])
    export_run(restored, tmp_path / "out")
    script, ids = load_script(tmp_path / "out"), np.random.default_rng(0).integers(0, 259, 200).tolist()
    cache: dict = {}
    expected = plain_logits(restored.model, restored.params, np.array([ids]))[0, [119, 199]]
    script_logits = script.logits(ids[:120], cache), script.logits(ids[120:], cache)
    np.testing.assert_allclose(script_logits, expected, atol=5e-6)


def test_the_script_samples_tokens_with_their_probabilities(tmp_path: Path) -> None:
    restored = random_run(**SHAPES["llama"])
    export_run(restored, tmp_path / "out")
    script = load_script(tmp_path / "out")
    shares = jax.nn.softmax(script.logits([1, 5], {}) / 0.5)
    sampled = [next(script.generate([1, 5], 1, temperature=0.5, seed=seed)) for seed in range(600)]
    likeliest = np.argsort(-shares)[:3]
    frequencies = [sampled.count(i) / 600 for i in likeliest]
    np.testing.assert_allclose(frequencies, shares[likeliest], atol=0.07)
    assert shares[likeliest].sum() > 0.15


def test_the_script_is_short_and_needs_only_numpy_and_safetensors() -> None:
    lines = STANDALONE_SCRIPT.read_text().splitlines()
    imported = {line.split()[1].split(".")[0] for line in lines if line.startswith(("import ", "from "))}
    assert len(lines) < 150
    assert imported - set(sys.stdlib_module_names) == {"numpy", "safetensors"}


@pytest.mark.parametrize("shape", SHAPES)
def test_weights_come_back_without_their_multipliers(shape: str) -> None:
    restored = random_run(**SHAPES[shape])
    config, ids_BT = restored.model.config, np.random.default_rng(0).integers(0, 259, (2, 20))
    again = from_hugging_face(to_hugging_face(restored.params, config), config)
    plain = Decoder(without_multipliers(config))
    expected = plain_logits(restored.model, restored.params, ids_BT)
    np.testing.assert_allclose(plain_logits(plain, again, ids_BT), expected, atol=2e-5)
    assert np.abs(plain_logits(plain, restored.params, ids_BT) - expected).max() > 0.1, "the multipliers matter"


def test_sentencepiece_text_has_the_same_ids_and_comes_back(pieces: SentencePieceTokenizer, tmp_path: Path) -> None:
    restored = random_run(pieces.name, kv_heads=1)
    files = {path.name for path in export_run(restored, tmp_path / "out")}
    assert (tmp_path / "out" / "tokenizer.model").read_bytes() == Path(pieces.name).read_bytes()
    assert "tokenizer.model" in files
    script = load_script(tmp_path / "out")
    shuffled = "".join(np.random.default_rng(0).choice(list("defslvaurtnow_ :("), 2000))
    for text in [*TEXTS, "    return self.value_3 + 49  # words", shuffled]:
        ids = pieces.encode(text).tolist()
        assert script.encode(text) == ids, text
        assert b"".join(script.bytes_by_id().get(i, b"") for i in ids).decode() == text
    expected = stream_greedy(restored, "def f1(self")
    assert run(tmp_path / "out", "def f1(self") == "def f1(self" + pieces.decode(expected) + "\n"


def test_a_unigram_tokenizer_is_refused(tmp_path: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    options = {"normalization_rule_name": "identity", "byte_fallback": True, "minloglevel": 2, "vocab_size": 300}
    options |= {"add_dummy_prefix": False, "remove_extra_whitespaces": False, "bos_id": -1, "eos_id": 1, "unk_id": 0}
    prefix = str(tmp_path / "unigram")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CODE), model_prefix=prefix, model_type="unigram", hard_vocab_limit=False, **options
    )
    restored = random_run(f"{prefix}.model")
    with pytest.raises(InputError, match=r"unigram\.model'"):
        export_run(restored, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_stablehlo_computes_the_logits_of_the_model(tmp_path: Path) -> None:
    pytest.importorskip("flatbuffers")
    from safetensors.numpy import load_file

    restored = random_run(**SHAPES["qwen3"])
    export_run(restored, tmp_path / "out", stablehlo=True)
    program = jax.export.deserialize(bytearray((tmp_path / "out" / "forward.stablehlo").read_bytes()))
    assert program.platforms == ("cpu", "cuda", "tpu")
    ids_BT = np.random.default_rng(0).integers(0, 259, (3, 48)).astype(np.int32)
    stablehlo_logits = program.call(load_file(tmp_path / "out" / "model.safetensors"), ids_BT)
    np.testing.assert_allclose(stablehlo_logits, plain_logits(restored.model, restored.params, ids_BT), atol=1e-5)


def test_nothing_but_an_export_is_replaced(tmp_path: Path) -> None:
    first, second = (random_run(**SHAPES[shape]) for shape in ("qwen3", "llama"))
    out = tmp_path / "out"
    export_run(first, out)
    export_run(second, out)
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    (out / "mine.txt").write_text("kept")
    with pytest.raises(InputError, match=rf"'{out}'.*'mine\.txt'"):
        export_run(first, out)
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text("{}")
    with pytest.raises(InputError, match=rf"'{other}'.*'config\.json'"):
        export_run(first, other)
    with pytest.raises(InputError, match=rf"out.*'{out}/mine\.txt'"):
        export_run(first, out / "mine.txt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "out"]


@pytest.mark.parametrize(("module", "package"), [("safetensors", "safetensors"), ("flatbuffers", "flatbuffers")])
def test_a_package_that_is_absent_is_named_before_anything_is_written(
    module: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, f"{module}.numpy", None)
    with pytest.raises(InputError, match=rf"{package}.*scaling-laws\[export\]"):
        export_run(random_run(**SHAPES["llama"]), tmp_path / "out", stablehlo=True)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_export_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("scaling.export.export.Path.write_bytes", full)
    with pytest.raises(InputError, match=f"'{tmp_path}/out'.*No space left on device"):
        export_run(random_run(**SHAPES["llama"]), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_the_verb_writes_and_refuses(trained: Path, tmp_path: Path) -> None:
    done = in_process("export", trained, "--out", "here", "--json", "facts.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    facts = json.loads((tmp_path / "facts.json").read_text())
    assert facts["step"] == 32
    assert facts["files"]["model.safetensors"] == (tmp_path / "here" / "model.safetensors").stat().st_size
    (tmp_path / "empty").mkdir()
    here = in_process("export", trained, "--out", ".", cwd=tmp_path / "empty")
    assert here.returncode == 2
    assert re.search(f"out.*'{tmp_path}/empty'", here.stderr)
    assert here.stderr.count("\n") == 1
    assert list((tmp_path / "empty").iterdir()) == []
    within = in_process("export", trained, "--out", "../empty", cwd=tmp_path / "here")
    assert within.returncode == 0, within.stderr
    assert (tmp_path / "empty" / "run.py").exists()
    refused = in_process("export", trained, "--step", "7", cwd=tmp_path)
    assert refused.returncode == 2
    assert re.search(r"step\D*7\b.*\b32\b", refused.stderr)
    nothing = in_process("export", tmp_path, cwd=tmp_path)
    assert nothing.returncode == 2
    assert re.search(rf"{tmp_path}\b.*config\.json", nothing.stderr)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [*SHAPES, "trained", "sentencepiece"])
def test_transformers_agrees(shape: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    python = interpreter()
    if python is None:
        pytest.skip(f"no environment with torch and transformers: {COMMAND} makes one")
    if shape == "trained":
        restored = restore_model(request.getfixturevalue("trained"))
    elif shape == "sentencepiece":
        restored = random_run(request.getfixturevalue("pieces").name)
    else:
        restored = random_run(**SHAPES[shape])
    export_run(restored, tmp_path / "out")
    vocabulary, ids = restored.tokenizer, prompt_ids(restored.tokenizer, "def main(").tolist()
    asked = json.dumps({"ids": ids, "texts": TEXTS, "most": 256})
    command = [python, str(ROOT / "tests" / "support" / "transformers_check.py"), str(tmp_path / "out")]
    done = subprocess.run(command, input=asked, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    theirs = json.loads(done.stdout)
    config, expected = restored.model.config, greedy(restored, "def main(")
    of_prompt = plain_logits(restored.model, restored.params, np.array([ids]))[0]
    difference = np.abs(np.array(theirs["logits"]) - of_prompt).max()
    differing = sum(a != b for a, b in zip(theirs["made"], expected, strict=True))
    print(f"{shape}: logits differ by {difference:.1e}, {differing} of {len(expected)} tokens, {theirs['versions']}")
    assert theirs["class"] == ("Qwen3ForCausalLM" if config.qk_norm else "LlamaForCausalLM")
    assert theirs["tied"] == config.tied
    assert difference < 5e-6 * np.abs(of_prompt).max()
    assert differing == 0
    spelt = TEXTS if isinstance(vocabulary, ByteTokenizer) else [text for text in TEXTS if "▁" not in text]
    for text, encoded, decoded in zip(TEXTS, theirs["encoded"], theirs["decoded"], strict=True):
        if text in spelt:
            assert encoded == prompt_ids(vocabulary, text).tolist(), text
            assert decoded == text
