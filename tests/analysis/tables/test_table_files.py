"""Tables as other programs write them: formats, separators, encodings, numbers, ids."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis.errors import TableError
from analysis.tables.results import read_table

CSV = "params,tokens,loss\n70000000,2e9,3.1\n1000000000,1.3e11,2.412\n"
ROWS = [{"params": 70_000_000, "tokens": 2e9, "loss": 3.1}, {"params": 10**9, "tokens": 1.3e11, "loss": 2.412}]
JSONL = "\n".join(map(json.dumps, ROWS))


FILES: dict[str, str | bytes] = {
    "a.csv": CSV,
    "A.CSV": CSV,
    "a.csv.gz": gzip.compress(CSV.encode()),
    "a.tsv": CSV.replace(",", "\t"),
    "a.TSV.GZ": gzip.compress(CSV.replace(",", "\t").encode()),
    "bom.csv": "\ufeff" + CSV,
    "utf16.csv": CSV.encode("utf-16"),
    "utf16.tsv": b"\xfe\xff" + CSV.replace(",", "\t").encode("utf-16-be"),
    "spaces.csv": CSV.replace(",", ", ").replace("params", " params "),
    "comment.csv": "# exported on Monday, by hand\n\n" + CSV,
    "dos.csv": CSV.replace("\n", "\r\n"),
    "trailing.csv": CSV.replace("e9,3.1", "e9,3.1,").replace("2.412", "2.412,"),
    "semicolons.csv": CSV.replace(",", ";"),
    "decimal_commas.csv": CSV.replace(",", ";").replace(".", ","),
    "points_group.csv": "params;tokens;loss\n70.000.000;2.000.000.000;3,1\n1.000.000.000;1,3e11;2,412\n",
    "commas_group.csv": 'params,tokens,loss\n"70,000,000",2B,3.1\n"1,000,000,000",130B,2.412\n',
    "suffixes.csv": "params,tokens,loss\n70M,2_000_000_000,3.1\n1B,0.13T,2.412\n",
    "a.jsonl": JSONL,
    "a.ndjson": JSONL + "\n\n",
    "a.jsonl.gz": gzip.compress(JSONL.encode()),
    "utf16.jsonl": JSONL.encode("utf-16"),
    "lines.json": JSONL,
    "list.json": json.dumps(ROWS, indent=1),
    "columns.json": json.dumps({name: [row[name] for row in ROWS] for name in ROWS[0]}),
    "pandas.json": pd.DataFrame(ROWS).to_json(),
    "strings.json": json.dumps([{name: str(value) for name, value in row.items()} for row in ROWS]),
}


@pytest.mark.parametrize("name", FILES)
def test_a_table_reads_alike_however_it_is_written(tmp_path: Path, name: str) -> None:
    path, content = tmp_path / name, FILES[name]
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    pd.testing.assert_frame_equal(read_table(path), pd.DataFrame(ROWS), check_dtype=False, rtol=0, atol=0)


def test_a_comma_before_three_digits_is_read_as_the_rest_of_the_file_says(tmp_path: Path) -> None:
    for content, losses in (
        ("params;loss\n7e7;3,141\n1e9;2,412\n", [3.141, 2.412]),
        ('params,loss\n7e7,"3,141"\n1e9,"2,412"\n', [3141, 2412]),
        ('params,loss,rate\n7e7,"3,141","0,01"\n1e9,"2,412","0,001"\n', [3.141, 2.412]),
        ("params;loss;rate\n7e7;3,141;0.01\n1e9;2,412;0.001\n", [3141, 2412]),
    ):
        (tmp_path / "t.csv").write_text(content)
        assert read_table(tmp_path / "t.csv")["loss"].tolist() == losses


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    table = pd.DataFrame(rows)
    if path.suffix == ".csv":
        table.to_csv(path, index=False)
    elif path.suffix == ".parquet":
        table.to_parquet(path)
    else:
        path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_ids_and_dates_stay_text_in_every_format(tmp_path: Path, suffix: str) -> None:
    rows = [
        {"run_id": "0012", "corpus": "001", "commit": "12345678e901", "date": "2024-05", "created_at": 1_700_000_000},
        {"run_id": "7e3", "corpus": "002", "commit": "914738e20125", "date": "2024-06", "created_at": 1_700_000_500},
    ]
    path = write(tmp_path / f"t.{suffix}", rows)
    assert read_table(path).to_dict("records") == rows
    assert read_table(path, {"run_id": "commit"})["run_id"].tolist() == ["12345678e901", "914738e20125"]


def test_a_column_that_is_the_run_id_is_text_whatever_it_looks_like(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", [{"id": "1e3", "loss": 2.0}, {"id": "12", "loss": 2.0}])
    assert read_table(path, {"run_id": "id"})["run_id"].tolist() == ["1e3", "12"]
    assert read_table(path)["id"].tolist() == [1000, 12]


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
@pytest.mark.parametrize("flops", [[12, 2**63], [12, 10**20], [6 * 10**9 * 131 * 10**9, 10**19, 10**20]])
def test_whole_numbers_beyond_64_bits_are_floats(tmp_path: Path, suffix: str, flops: list[int]) -> None:
    table = read_table(write(tmp_path / f"t.{suffix}", [{"flops": value} for value in flops]))
    assert table["flops"].dtype == np.float64
    assert table["flops"].tolist() == list(map(float, flops))


def test_json_keeps_losses_that_are_no_number(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"loss": NaN}\n{"loss": Infinity}\n{"loss": "nan"}\n{"loss": null}\n{"loss": 2.5}\n')
    assert np.array_equal(read_table(path)["loss"], [np.nan, np.inf, np.nan, np.nan, 2.5], equal_nan=True)


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_fields_of_nested_objects_have_dotted_names(tmp_path: Path, suffix: str) -> None:
    rows = [
        {"model": {"size": {"params": "70M"}, "name": "a"}, "tasks": ["x", "y"]},
        {"model": {"size": {"params": "1.4B"}, "name": "b"}, "tasks": []},
    ]
    table = read_table(write(tmp_path / f"t.{suffix}", rows), {"params": "model.size.params"})
    assert table["params"].tolist() == [70_000_000, 1_400_000_000]
    assert table["model.name"].tolist() == ["a", "b"]
    assert table["tasks"].tolist() == ['["x", "y"]', "[]"]


def test_the_index_of_a_parquet_file_is_a_column(tmp_path: Path) -> None:
    pd.DataFrame({"loss": [2.0]}, index=pd.Index(["0012"], name="run_id")).to_parquet(tmp_path / "t.parquet")
    assert read_table(tmp_path / "t.parquet").to_dict("records") == [{"run_id": "0012", "loss": 2.0}]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.xlsx", b"", r"a\.xlsx.*\.csv.*\.ndjson"),
        ("a.csv", b"", r"a\.csv"),
        ("a.csv", b"params,loss\n1,2,3\n4,5,6\n", r"a\.csv"),
        ("a.csv", b"params,loss\n1,2\n4,5,6\n", r"a\.csv.*\b2\b.*line 3\b.*\b3\b"),
        ("a.csv", "größe,loss\n1,2\n".encode("latin-1"), r"a\.csv.*byte 3\b.*UTF-8"),
        ("a.csv", "params,loss\n1,2\n".encode("utf-16-le"), r"a\.csv.*UTF-8"),
        ("a.csv.gz", CSV.encode(), r"a\.csv\.gz"),
        ("a.csv.gz", gzip.compress(CSV.encode(), mtime=0)[:-12], r"a\.csv\.gz"),
        ("a.jsonl", JSONL[:-5].encode(), r"a\.jsonl.*line 2\b"),
        ("a.jsonl", b"", r"a\.jsonl"),
        ("a.jsonl", b"1\n2\n", r"a\.jsonl.*object"),
        ("a.json", b"[1, 2]", r"a\.json.*object"),
        ("a.json", b'{"params": [1, 2], "loss": [1]}', r"a\.json.*params, loss"),
        ("a.parquet", b"PAR1", r"a\.parquet"),
    ],
)
def test_a_file_that_is_no_table_is_one_line_that_names_it(
    tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TableError, match=words) as error:
        read_table(tmp_path / name)
    assert "\n" not in str(error.value)


def test_public_tables_read_to_the_numbers_that_pandas_reads(shared_data: Path) -> None:
    for path in sorted(shared_data.rglob("*.csv")):
        expected, table = pd.read_csv(path), read_table(path)
        assert list(table) == list(expected)
        for name in expected.select_dtypes("number"):
            assert np.array_equal(table[name].to_numpy(), expected[name].to_numpy(), equal_nan=True), (path.name, name)
