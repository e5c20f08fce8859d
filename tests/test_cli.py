"""Bad input, as a user meets it: exit code 2, one line on stderr that names what is wrong, nothing lost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import scaling

from scaling.config import RunConfig, to_dict


def error_of(*arguments: object, cwd: Path) -> str:
    done = scaling(*arguments, cwd=cwd)
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.fixture
def place(tmp_path: Path, corpora: Path) -> Path:
    """A folder where a user stands, with `walk` prepared."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "corpora").symlink_to(corpora)
    return tmp_path


def test_a_misspelt_flag_is_answered_with_the_nearest(tmp_path: Path) -> None:
    done = scaling("train", "--model.widht", 64, cwd=tmp_path)
    assert done.returncode == 2
    assert "--model.widht" in done.stderr
    assert "--model.width" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_misspelt_verb_is_answered(tmp_path: Path) -> None:
    done = scaling("trian", cwd=tmp_path)
    assert done.returncode == 2
    assert "train" in done.stderr


def test_a_misspelt_field_in_json(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(json.dumps({"model": {"widht": 64}}))
    assert "c.json: unknown field model.widht; did you mean width?" in error_of(
        "train", "--file", "c.json", cwd=tmp_path
    )


def test_flags_override_a_file(tmp_path: Path) -> None:
    config = RunConfig(tokens=4096)
    (tmp_path / "c.json").write_text(json.dumps(to_dict(config)))
    text = error_of("train", "--file", "c.json", "--data.batch-sequences", 999, cwd=tmp_path)
    assert "RunConfig.tokens = 4096: must be at least 127872" in text


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--data.corpus", "wlak"), ["unknown corpus 'wlak'", "walk"]),
        (("--data.corpus", "stdlib"), ["'stdlib' is not prepared", "scaling data prepare"]),
        (("--data.corpus", "text:nowhere"), ["nowhere"]),
        (("--data.corpus", "walk", "--model.heads", 3), ["ModelConfig.heads = 3", "divisor of width=128"]),
        (("--data.corpus", "walk", "--model.vocab-size", 20), ["vocab"]),
        (
            ("--data.corpus", "walk", "--data.sequence-length", 2_000_000, "--tokens", 100_000_000),
            ["2000000", "1048577"],
        ),
        (("--data.corpus", "walk", "--mesh.fsdp", 3), ["fsdp=3", "number of devices"]),
        (("--data.corpus", "walk", "--schedule.warmup-tokens", 1 << 40), ["warmup_tokens = 1099511627776"]),
    ],
)
def test_a_wrong_run_is_refused_before_it_starts(place: Path, flags: tuple[object, ...], words: list[str]) -> None:
    text = error_of("train", "--tokens", 4096, "--folder", "run", *flags, cwd=place)
    for word in words:
        assert word in text
    assert not (place / "run").exists()


def test_batch_not_divisible_by_devices(place: Path) -> None:
    done = scaling(
        *("train", "--data.corpus", "walk", "--data.batch-sequences", 6, "--folder", "run"),
        cwd=place,
        XLA_FLAGS="--xla_force_host_platform_device_count=4",
    )
    assert done.returncode == 2
    assert "data.batch_sequences = 6: must be a multiple of the 4 devices" in done.stderr
    assert not (place / "run").exists()


def test_an_empty_corpus(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    assert "empty" in error_of("data", "prepare", "text:empty.txt", "--road", "plain", cwd=tmp_path)


def test_a_torn_config_is_named_and_kept(place: Path) -> None:
    (place / "run").mkdir()
    (place / "run" / "config.json").write_text('{"schema": 1, "mod')
    assert "run/config.json: not whole JSON" in error_of("train", "--folder", "run", cwd=place)
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
    ("rows", "words"),
    [
        ("a,b\n1,2\n", ["params", "--columns"]),
        ("params,tokens,loss\n" + "1e5,1e6,3\n" * 9 + "1e5,-1e6,2\n", ["tokens", "row"]),
        ("params,tokens,loss\n" + "1e5,1e6,3\n" * 9 + "1e5,1e6,nan\n", ["loss", "row"]),
        ("params,tokens,loss\n1e5,1e6,3\n2e5,1e6,2.9\n", ["2", "5"]),
    ],
)
def test_a_table_that_cannot_be_fitted(tmp_path: Path, rows: str, words: list[str]) -> None:
    (tmp_path / "t.csv").write_text(rows)
    text = error_of("fit", "t.csv", cwd=tmp_path)
    for word in words:
        assert word in text
    assert [path.name for path in tmp_path.iterdir()] == ["t.csv"]


def test_help_names_every_verb_quickly(tmp_path: Path) -> None:
    done = scaling("--help", cwd=tmp_path)
    for verb in ("train", "data", "sweep", "fit", "forecast", "report"):
        assert verb in done.stdout
