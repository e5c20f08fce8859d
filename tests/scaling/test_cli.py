"""Bad input, as a user meets it: exit code 2, one line on stderr that names what is wrong, nothing lost."""

from __future__ import annotations

import dataclasses
import errno
import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest
import tyro

from scaling import cli
from scaling.config.run_config import OptimizerConfig, RunConfig, load_config, to_dict
from scaling.errors import InputError
from scaling.exit_codes import BAD_INPUT, INTERRUPTED
from scaling.files import write_json
from tests.conftest import ROOT, in_process, scaling

RUN = RunConfig()
Run = Callable[..., "subprocess.CompletedProcess[str]"]


def error_of(*arguments: object, cwd: Path, run: Run = in_process) -> str:
    done = run(*arguments, cwd=cwd)
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.mark.parametrize("flush", [True, False])
def test_nobody_reading_the_output_is_no_traceback(flush: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scaling.commands.generate.generate", lambda: print("text", flush=flush))
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "w") as out:
        monkeypatch.setattr(sys, "stdout", out)
        with pytest.raises(SystemExit) as end:
            cli.main(["generate"])
        assert end.value.code == 141
        out.write("what is left in the buffer harms nobody")


@pytest.mark.parametrize(("number", "code"), [(errno.EACCES, BAD_INPUT), (errno.EROFS, BAD_INPUT), (errno.ENOSPC, 28)])
def test_a_path_that_the_system_refuses_is_one_line(
    number: int, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise OSError(number, os.strerror(number), "some/file")

    monkeypatch.setattr("scaling.commands.generate.generate", refuse)
    done = in_process("generate", cwd=tmp_path)
    assert done.returncode == code
    assert re.fullmatch(rf"error: some/file: {os.strerror(number)}\b.*\n", done.stderr)


@pytest.mark.parametrize("home", [None, "/proc/nowhere"])
def test_without_a_home_folder_no_compiled_programs_are_kept(
    home: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container that runs under a number which /etc/passwd does not have."""
    for name in ("XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)

    def no_home() -> Path:
        if home is None:
            raise RuntimeError("Could not determine home directory.")
        return Path(home)

    monkeypatch.setattr(Path, "home", no_home)
    assert in_process("data", "list", cwd=tmp_path).returncode == 0
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ


@pytest.mark.parametrize("module", ["tyro", "jax"])
def test_ctrl_c_while_modules_are_imported_is_no_traceback(module: str, tmp_path: Path) -> None:
    """`tyro` is imported by the command line itself, `jax` by the verb. The one here presses ctrl-C."""
    text = "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(20)\n"
    (tmp_path / f"{module}.py").write_text(text)
    done = scaling("train", cwd=tmp_path, PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    assert (done.returncode, done.stdout, done.stderr) == (INTERRUPTED, "", "")


@pytest.fixture
def place(tmp_path: Path, corpora: Path) -> Path:
    """A folder where a user stands, with `walk` prepared."""
    return with_corpora(tmp_path, corpora)


def with_corpora(folder: Path, corpora: Path) -> Path:
    (folder / "out").mkdir()
    (folder / "out" / "corpora").symlink_to(corpora)
    return folder


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("train", "--model.widht", 64), ["--model.widht", "--model.width"]),
        (("train", "--model.width", "abc"), ["--model.width", "abc"]),
        (("trian",), ["trian", "train"]),
        (("sweep", "plan"), ["sweep plan", "STR"]),
    ],
)
@pytest.mark.parametrize("run", [in_process, scaling])
def test_a_wrong_flag_or_verb_is_answered_with_the_nearest(
    tmp_path: Path, arguments: tuple[object, ...], words: list[str], run: Run
) -> None:
    text = error_of(*arguments, cwd=tmp_path, run=run)
    for word in words:
        assert word in text
    assert list(tmp_path.iterdir()) == []


def test_what_a_user_wrote_is_shown_as_written(tmp_path: Path) -> None:
    assert "text:x[a-z][/b]y.txt" in error_of("train", "--data.corpus", "text:x[a-z][/b]y.txt", cwd=tmp_path)


@pytest.mark.parametrize("words", cli.VERBS)
def test_a_url_as_a_path_is_refused_by_its_scheme(words: str) -> None:
    """Each flag of each verb that takes a path, and no folder `gs:` beside it."""
    module, function, _ = cli.VERBS[words]
    verb = cli.import_verb(module, function, [])
    parameters = inspect.signature(verb, eval_str=True).parameters.values()
    paths = [p.name for p in parameters if "Path" in str(p.annotation) or p.name in ("directory", "vocabulary")]
    required = {p.name: "x" for p in parameters if p.default is p.empty}
    positional = [p.name for p in parameters if p.kind is p.POSITIONAL_ONLY]
    for name in paths:
        values = required | {name: Path("gs://b/x")}
        call = cli.deferred(verb)(*[values.pop(word) for word in positional], **values)
        with pytest.raises(InputError, match=rf"--{name.replace('_', '-')}\b.*gs://b/x"):
            call()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("train", "--folder", "gs://b/x"), r"--folder\b.*gs://b/x"),
        (("train", "--file", "https://b/c.json"), r"--file\b.*https://b/c\.json"),
        (("compile", "gs://b/c.json", "--topology", "v5e:4x4"), "gs://b/c.json"),
        (("data", "prepare", "text:s3://b/a.txt"), r"text:s3://b/a\.txt"),
        (("sweep", "plan", "smoke", "--out", "file:///tmp/x"), "file://"),
    ],
)
def test_a_url_makes_no_local_folder(tmp_path: Path, arguments: tuple[object, ...], named: str) -> None:
    text = error_of(*arguments, cwd=tmp_path)
    assert re.search(named, text), text
    assert not any(path.name.endswith(":") for path in tmp_path.rglob("*"))


@pytest.mark.parametrize(
    "arguments", [("fit", "t.csv"), ("eval", "r"), ("generate", "r"), ("train",), ("design", "t.csv", "--budget", 1e20)]
)
def test_a_seed_that_is_no_key_is_refused(tmp_path: Path, arguments: tuple[object, ...]) -> None:
    for seed in (-1, 7 + 2**32, 2**63):
        assert re.search(rf"seed\D*{seed}\b.*\b{2**32}\b", error_of(*arguments, "--seed", seed, cwd=tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_misspelt_field_in_json(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(json.dumps({"model": {"widht": 64}}))
    assert re.search(r"c\.json.*model\.widht\b.*\bwidth\b", error_of("train", "--file", "c.json", cwd=tmp_path))


def test_flags_override_a_file(tmp_path: Path) -> None:
    config = RunConfig(tokens=4096)
    (tmp_path / "c.json").write_text(json.dumps(to_dict(config)))
    text = error_of("train", "--file", "c.json", "--data.batch-sequences", 999, cwd=tmp_path)
    assert re.search(r"\btokens\b.*\b4096\b.*\b127872\b", text)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--data.corpus", "wlak"), r"corpus.*'wlak'.*\bwalk\b"),
        (("--data.corpus", "stdlib"), r"corpus.*'stdlib'.*scaling data prepare 'stdlib'"),
        (("--data.corpus", "text:nowhere"), "text:nowhere"),
        (("--data.corpus", "walk", "--model.heads", 3), r"ModelConfig\.heads.*\b3\b.*width=128"),
        (("--data.corpus", "walk", "--model.vocab-size", 20), r"vocab_size.*\b20\b"),
        (
            ("--data.corpus", "walk", "--data.sequence-length", 2_000_000, "--tokens", 100_000_000),
            "2000000.*1048577",
        ),
        (("--data.corpus", "walk", "--mesh.fsdp", 3), r"fsdp=3\b.*\b1\b"),
        (("--data.corpus", "walk", "--schedule.warmup-tokens", 1 << 40), r"warmup_tokens.*\b1099511627776\b"),
    ],
)
def test_a_wrong_run_is_refused_before_it_starts(place: Path, flags: tuple[object, ...], named: str) -> None:
    text = error_of("train", "--tokens", 4096, "--folder", "run", *flags, cwd=place)
    assert re.search(named, text), text
    assert not (place / "run").exists()


def test_batch_not_divisible_by_devices(place: Path) -> None:
    done = scaling(
        *("train", "--data.corpus", "walk", "--data.batch-sequences", 6, "--folder", "run"),
        cwd=place,
        XLA_FLAGS="--xla_force_host_platform_device_count=4",
    )
    assert done.returncode == 2
    assert re.search(r"data\.batch_sequences.*\b6\b.*\b4\b", done.stderr)
    assert not (place / "run").exists()


def test_an_empty_corpus(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("")
    assert "text:a.txt" in error_of("data", "prepare", "text:a.txt", "--backend", "plain", cwd=tmp_path)
    (folder,) = (tmp_path / "out" / "corpora").iterdir()
    assert [path.name for path in folder.iterdir()] == [".lock"], "no shard, no manifest"


def test_a_torn_config_is_named_and_kept(place: Path) -> None:
    (place / "run").mkdir()
    (place / "run" / "config.json").write_text('{"schema": 1, "mod')
    assert "run/config.json" in error_of("train", "--folder", "run", cwd=place)
    assert (place / "run" / "config.json").read_text() == '{"schema": 1, "mod'


def test_a_torn_result_is_named_by_the_verbs_that_read_it(tmp_path: Path) -> None:
    run = tmp_path / "sweep" / "runs" / "abc"
    run.mkdir(parents=True)
    (run / "result.json").write_text('{"status": "done", "ro')
    assert "abc/result.json" in error_of("fit", "sweep", cwd=tmp_path)
    assert (run / "result.json").read_text() == '{"status": "done", "ro'


def test_unknown_sweep(tmp_path: Path) -> None:
    text = error_of("sweep", "plan", "stdlib_cp", cwd=tmp_path)
    assert "stdlib_cp" in text
    assert "stdlib_cpu" in text


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        ("a,b\n1,2\n", r"params_matmul.*tokens.*loss.*--columns"),
        ("params,tokens,loss\n" + "1e5,1e6,3\n" * 9 + "1e5,-1e6,2\n", r"\b10\b.*tokens.*-1000000"),
        ("params,tokens,loss\n" + "1e5,1e6,3\n" * 9 + "1e5,1e6,nan\n", r"\b10\b.*\bloss\b"),
        ("params,tokens,loss\n1e5,1e6,3\n2e5,1e6,2.9\n", r"\b2\b.*\b5\b.*\b6\b"),
    ],
)
def test_a_table_that_cannot_be_fitted(tmp_path: Path, rows: str, named: str) -> None:
    (tmp_path / "t.csv").write_text(rows)
    text = error_of("fit", "t.csv", cwd=tmp_path)
    assert re.search(named, text), text
    assert [path.name for path in tmp_path.iterdir()] == ["t.csv"]


def test_help_names_every_verb_and_loads_no_heavy_package(tmp_path: Path) -> None:
    program = """
import contextlib, sys
from scaling import cli
with contextlib.suppress(SystemExit):
    cli.main(["--help"])
print("loaded", [name for name in ("jax", "flax", "pandas", "numpy", "scipy", "tensorflow") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path)
    *text, loaded = done.stdout.splitlines()
    assert loaded == "loaded []"
    for words in cli.VERBS:
        assert words.split()[0] in "\n".join(text)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("words", cli.VERBS)
def test_every_flag_of_every_verb_has_a_help_text(words: str) -> None:
    """The text of a flag is what stands before tyro's own "(required)" or "(default: ...)"."""
    module, function, _ = cli.VERBS[words]
    parser = tyro.extras.get_parser(cli.import_verb(module, function, []), config=(tyro.conf.PositionalRequiredArgs,))
    flags = [action for action in all_actions(parser) if action.dest != "help"]
    assert flags
    assert [action.option_strings or action.dest for action in flags if (action.help or "(").startswith("(")] == []


def all_actions(parser: Any) -> Iterator[Any]:
    """The positional arguments and flags of a parser and of its subcommands (`scaling sweep run NAME slurm`)."""
    for action in parser._actions:
        if type(action).__name__ == "_SubParsersAction":  # of argparse, or of tyro's copy of it
            for subparser in action.choices.values():
                yield from all_actions(subparser)
        else:
            yield action


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (["coordinates", "--steps", "2"], ["coord-check", "--steps", "2"]),
        (["data", "prepare", "walk", "--road=plain"], ["data", "prepare", "walk", "--backend=plain"]),
        (["eval", "run", "--again"], ["eval", "run", "--rerun"]),
        (["generate", "run", "--prompt", "--again"], ["generate", "run", "--prompt", "--again"]),
    ],
)
def test_verbs_and_flags_of_the_last_release_are_understood(old: list[str], new: list[str]) -> None:
    assert cli.with_current_names(old) == new


def test_old_names_point_to_names_of_today() -> None:
    assert set(cli.OLD_VERBS.values()) | set(cli.OLD_FLAGS) <= set(cli.VERBS)
    assert not set(cli.OLD_VERBS) & set(cli.VERBS)


@pytest.mark.parametrize(
    "verb",
    [
        *(("train", "--folder"), ("train", "--seed", 0, "--folder"), ("profile", "--folder"), ("population",)),
        *(("eval",), ("generate",), ("export",), ("track",)),
    ],
)
def test_a_config_that_was_edited_in_a_run_folder_is_refused_by_every_verb(
    tmp_path: Path, verb: tuple[object, ...]
) -> None:
    folder = tmp_path / "s" / "runs" / RunConfig().run_id
    edited = RunConfig(optimizer=OptimizerConfig(learning_rate=0.01))
    write_json(folder / "config.json", to_dict(edited))
    write_json(folder.parent.parent / "plan.json", {"cells": [{"run_id": folder.name, "config": to_dict(RunConfig())}]})
    (folder / "checkpoints" / "4").mkdir(parents=True)
    (folder / "metrics.jsonl").write_text('{"step": 4, "tokens": 64, "loss": 3.0}\n')
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    done = in_process(*verb, folder, *(("tensorboard",) if verb == ("track",) else ()), cwd=tmp_path)
    assert done.returncode == {"population": 1, "track": 0}.get(str(verb[0]), 2), done
    assert done.stderr.count("\n") == 1
    pattern = rf"{folder.name}.*{edited.run_id}.*optimizer\.learning_rate\b.*\b0\.003\b.*\b0\.01\b"
    assert re.search(pattern, done.stderr), done.stderr
    assert {path: path.read_bytes() for path in before} == before


SMALL = ("--model.width", 16, "--model.depth", 1, "--model.heads", 1, "--measure.validation-tokens", 512)
SHORT = ("train", "--data.corpus", "walk", "--data.sequence-length", 32, "--tokens", 512)


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory, corpora: Path
) -> tuple[Path, dict[str, str], subprocess.CompletedProcess[str]]:
    """A place with a finished run, made with an empty cache of programs; the environment that shows what JAX does with
    that cache; what the command said."""
    place = with_corpora(tmp_path_factory.mktemp("trained"), corpora)
    said = {"JAX_DEBUG_LOG_MODULES": "jax._src.compiler", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    said["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("JAX_COMPILATION_CACHE_DIR")
        said["XDG_CACHE_HOME"] = str(place / "cache")
        done = scaling(*SHORT, *SMALL, "--folder", "run", "--json", "r.json", cwd=place, **said)
    assert done.returncode == 0, done.stderr[-2000:]
    return place, said, done


def test_a_finished_folder_answers_for_its_own_run_alone(
    trained: tuple[Path, dict[str, str], subprocess.CompletedProcess[str]],
) -> None:
    place, _, done = trained
    result = json.loads((place / "r.json").read_text())
    assert result["status"] == "done"
    assert f"{result['row']['loss']:.4f}" in done.stdout
    held = load_config(place / "run" / "config.json")
    assert held.data.fingerprint
    assert in_process("train", "--folder", "run", cwd=place).returncode == 0
    assert held.run_id in error_of("train", "--folder", "run", "--model.width", 32, cwd=place)


def test_a_second_run_of_a_shape_compiles_from_the_cache(
    trained: tuple[Path, dict[str, str], subprocess.CompletedProcess[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another seed and learning rate: the same programs. JAX says of each program whether it was in the cache."""
    place, said, first = trained
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    other = ("--folder", "other", "--seed", 1, "--optimizer.learning-rate", 0.002)
    second = scaling(*SHORT, *SMALL, *other, cwd=place, **said)
    assert second.returncode == 0, second.stderr[-2000:]
    hits = [set(re.findall(r"Persistent compilation cache hit for '(\w+)'", done.stderr)) for done in (first, second)]
    assert not hits[0] & {"jit_init", "jit_step"}
    assert hits[1] >= {"jit_init", "jit_step"}


def test_compiled_programs_are_kept_in_the_users_cache_unless_jax_is_told_of_another(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cli.build_app(["sweep", "run"])
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ, "a sweep keeps its own"
    for verb in ("train", "fit"):
        monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
        cli.build_app([verb])
        assert Path(os.environ["JAX_COMPILATION_CACHE_DIR"]).is_relative_to(tmp_path)
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "elsewhere")
        cli.build_app([verb])
        assert os.environ["JAX_COMPILATION_CACHE_DIR"] == "elsewhere"


def numbers(
    count: int = 0,
    budget: float = 0.0,
    limit: int | None = None,
    widths: tuple[int, ...] = (),
    config: Annotated[RunConfig, tyro.conf.arg(name="")] = RUN,
) -> list[object]:
    return [count, budget, limit, widths, config]


def test_every_numeric_flag_is_read_as_people_write_numbers() -> None:
    app = tyro.extras.SubcommandApp()
    app.command(numbers)
    app.command(lambda: None, name="other")
    flags = "--count 1_048_577 --budget 1e22FLOPs --limit 1.5M --widths 32 6_4 1e3 --model.width 1e3 --seed 4_0"
    read: Any = cli.parse(app, ["numbers", *flags.split(), "--model.rope-theta", "1,000,000"])
    assert read[:4] == [2**20 + 1, 1e22, 1_500_000, (32, 64, 1000)]
    assert [type(value) for value in read[:3]] == [int, float, int]
    assert read[4] == dataclasses.replace(
        RUN, seed=40, model=dataclasses.replace(RUN.model, width=1000, rope_theta=1e6)
    )
    exact: Any = cli.parse(app, ["numbers", "--count", str(2**60 + 1)])
    assert exact[0] == 2**60 + 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("train --tokens 7X", r"--tokens 7X: must be a number\b"),
        ("train --tokens 1.5", r"--tokens 1\.5: must be a whole number"),
        ("train --tokens -1", r"tokens = -1: must be"),
        ("train --optimizer.learning-rate nan", r"--optimizer\.learning-rate nan: must be"),
        ("train --data.unique-tokens 7X", r"--data\.unique-tokens 7X: must be"),
        ("cost 124M --tokens -1", r"--tokens -1: must be"),
        ("cost 124M --set model.depth=7X", r"--set model\.depth=7X: must be"),
        ("forecast fit.json --params-value 7X --tokens 1", r"--params-value 7X: must be"),
        ("backtest t.csv --draws -1", r"--draws -1: must be"),
        ("isoflop t.csv --bias-flops -1", r"--bias-flops -1: must be"),
        ("forecast fit.json --params-value 1 --tokens inf", r"--tokens inf: must be"),
    ],
)
def test_a_wrong_number_is_one_line_that_names_flag_and_value(arguments: str, words: str, tmp_path: Path) -> None:
    assert re.search(words, error_of(*arguments.split(), cwd=tmp_path))


@pytest.mark.parametrize(
    "command",
    [
        ("sweep", "status", "smoke", "--out"),
        ("sweep", "collect"),
        ("fit",),
        ("forecast",),
        ("track",),
        ("train", "--file"),
    ],
)
def test_a_path_that_is_too_long_is_one_line(tmp_path: Path, command: tuple[str, ...]) -> None:
    done = in_process(*command, "a" * 5000, cwd=tmp_path)
    assert done.returncode == 2
    assert re.fullmatch(r"error: .*aaa.*\n", done.stderr)
    assert len(done.stderr) < 400
