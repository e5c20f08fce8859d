from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path

import pytest

from scaling import files
from scaling.config.run_config import OptimizerConfig, RunConfig, load_config, to_dict
from scaling.errors import BusyError, InputError
from scaling.record import run_folder


def test_a_torn_last_line_is_ignored_and_harms_no_later_line(tmp_path: Path) -> None:
    for step in (1, 2):
        run_folder.append_metrics(tmp_path, {"step": step, "loss": step / 2})
    with (tmp_path / run_folder.METRICS).open("a") as file:
        file.write('{"step": 3, "lo')
    assert [line["step"] for line in run_folder.read_metrics(tmp_path)] == [1, 2]
    run_folder.append_metrics(tmp_path, {"step": 4, "loss": 2.0})
    assert [line["step"] for line in run_folder.read_metrics(tmp_path)] == [1, 2, 4]


def test_lines_of_one_step_join_and_the_last_counts(tmp_path: Path) -> None:
    for line in ({"step": 1, "loss": 3.0}, {"step": 1, "validation_loss": 4.0}, {"step": 1, "loss": 2.0}):
        run_folder.append_metrics(tmp_path, line)
    assert run_folder.read_metrics(tmp_path) == [{"step": 1, "loss": 2.0, "validation_loss": 4.0}]


def test_result_is_written_whole_and_read_back(tmp_path: Path) -> None:
    assert run_folder.read_result(tmp_path) is None
    run_folder.write_result(
        tmp_path,
        status="diverged",
        row={"loss": math.nan},
        measurements={"loss/nats": (math.inf, 3, 0.5)},
        reason="why",
    )
    text = (tmp_path / run_folder.RESULT).read_text()
    assert json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON")) == run_folder.read_result(
        tmp_path
    )
    result = run_folder.read_result(tmp_path)
    assert result is not None
    assert (result["status"], result["reason"]) == ("diverged", "why")
    assert result["row"]["loss"] is None
    assert result["measurements"]["loss/nats"] == [None, 3, 0.5]


def test_a_torn_result_is_named(tmp_path: Path) -> None:
    (tmp_path / run_folder.RESULT).write_text('{"status": "do')
    with pytest.raises(InputError, match=run_folder.RESULT):
        run_folder.read_result(tmp_path)
    assert (tmp_path / run_folder.RESULT).read_text() == '{"status": "do'


def test_a_folder_belongs_to_one_run(tmp_path: Path) -> None:
    for config in (RunConfig(), RunConfig(name="renamed")):
        with run_folder.locked_run_folder(tmp_path, config, "xla"):
            assert load_config(tmp_path / run_folder.CONFIG) == config
    with (
        pytest.raises(InputError, match=RunConfig().run_id),
        run_folder.locked_run_folder(tmp_path, RunConfig(seed=1), "xla"),
    ):
        pass
    assert files.read_json(tmp_path / run_folder.CONFIG)["seed"] == 0


EDITED = dataclasses.replace(RunConfig(), optimizer=OptimizerConfig(beta2=0.99))
FIELD = r"\boptimizer\.beta2\b.*\b0\.95\b.*\b0\.99\b"


@pytest.mark.parametrize("free_name", [True, False])
def test_an_edited_config_is_refused_with_the_field(tmp_path: Path, free_name: bool) -> None:
    folder = tmp_path / ("mine" if free_name else RunConfig().run_id)
    with run_folder.locked_run_folder(folder, RunConfig(), "xla"):
        assert run_folder.read_config(folder) == RunConfig()
    files.write_json(folder / run_folder.CONFIG, to_dict(EDITED))
    for config in (RunConfig(), EDITED):  # the one that was trained, too: which one the user means is not known
        with pytest.raises(InputError, match=f"{RunConfig().run_id}|{EDITED.run_id}"):
            run_folder.check_folder(folder, config)
    with pytest.raises(InputError, match=rf"{re.escape(str(folder))}.*{RunConfig().run_id}.*{EDITED.run_id}.*{FIELD}"):
        run_folder.read_config(folder)
    files.write_json(folder / run_folder.CONFIG, to_dict(RunConfig(name="renamed")))
    assert run_folder.read_config(folder).name == "renamed"


def test_a_folder_that_has_not_begun_is_of_the_run_that_the_plan_has(tmp_path: Path) -> None:
    folder = tmp_path / run_folder.RUNS / RunConfig().run_id
    cell = {"run_id": RunConfig().run_id, "config": to_dict(RunConfig())}
    files.write_json(tmp_path / run_folder.PLAN, {"cells": [cell]})
    with pytest.raises(InputError, match=rf"{RunConfig().run_id}.*{EDITED.run_id}.*{FIELD}"):
        run_folder.check_folder(folder, EDITED)
    assert not folder.exists()


@pytest.mark.parametrize("environment", [None, {"schema": 1, "python": "3.11"}, {"run_id": 3}])
def test_a_folder_of_an_earlier_version_is_of_the_run_of_its_result(tmp_path: Path, environment: dict | None) -> None:
    files.write_json(tmp_path / run_folder.CONFIG, to_dict(EDITED))
    if environment is not None:
        files.write_json(tmp_path / run_folder.ENVIRONMENT, environment)
    assert run_folder.read_config(tmp_path) == EDITED
    row = {"run_id": RunConfig().run_id}
    run_folder.write_result(tmp_path, status="done", row=row, measurements={})
    with pytest.raises(InputError, match=rf"{RunConfig().run_id}.*{run_folder.RESULT}.*{EDITED.run_id}"):
        run_folder.read_config(tmp_path)


def test_a_folder_has_one_writer_at_a_time(tmp_path: Path) -> None:
    with (
        run_folder.locked_run_folder(tmp_path, RunConfig(), "xla"),
        pytest.raises(BusyError, match=re.escape(str(tmp_path))),
        run_folder.locked_run_folder(tmp_path, RunConfig(), "xla"),
    ):
        pass
    with run_folder.locked_run_folder(tmp_path, RunConfig(), "xla"):
        pass


def test_metrics_hold_no_number_that_json_lacks(tmp_path: Path) -> None:
    run_folder.append_metrics(tmp_path, {"step": 1, "loss": math.nan})
    assert (tmp_path / run_folder.METRICS).read_text() == '{"step": 1, "loss": null}\n'
