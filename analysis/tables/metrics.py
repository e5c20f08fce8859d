"""Every run's logged steps as one table, quickly: what metrics.jsonl of hundreds of runs hold, compacted to Parquet.

    <sweep>/runs/<run_id>/metrics.jsonl     the truth: one line a logged step, appended by the run
    <sweep>/metrics.parquet                 what was read of it, for speed alone; delete it at any time

The Parquet file says in its metadata how long each metrics.jsonl was, and of when, when it was read. A file that is
still so is not read again: `compact` reads the others only, and `metrics` takes from JSONL what is not compacted yet.

Not in the design's list of modules: `results` holds one row a run, this one row a step.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.json
import pyarrow.parquet as pq

from analysis.errors import TableError
from analysis.files import write_by_rename

METRICS, FILE = "metrics.jsonl", "metrics.parquet"
SCHEMA = 1
_INDEX = b"scaling.runs"
_NUMBERS = ("loss", "grad_norm", "learning_rate", "validation_loss", "tokens_per_second")
_KNOWN = pa.schema([("step", pa.int64()), ("tokens", pa.int64()), *((name, pa.float64()) for name in _NUMBERS)])
_RUN_ID = pa.dictionary(pa.int32(), pa.string())
_EMPTY = pa.schema([("run_id", _RUN_ID), *_KNOWN]).empty_table()
_BATCH = 1 << 24
"""Bytes of JSONL parsed in one go: small files cost more to begin with than to read."""


class FileStamp(NamedTuple):
    """What tells a file that was read from one that has changed since: bytes, and nanoseconds of its mtime."""

    size: int
    mtime_ns: int


@dataclass(frozen=True)
class CompactionSummary:
    """What `compact_metrics` did.

    Attributes:
      num_runs, num_rows: in the compacted table.
      num_read: run folders whose lines were read now.
      num_removed: runs that were in the table and whose folder no longer exists.
    """

    path: Path
    num_runs: int
    num_rows: int
    num_read: int
    num_removed: int


def load_metrics(folder: str | Path, runs: Iterable[str] | None = None) -> pd.DataFrame:
    """Every logged step of a sweep, or of one run.

    Columns: run_id (categorical), step, tokens (trained on so far), loss (nats per token, of the step's batch),
    grad_norm, learning_rate, validation_loss (nats per token), tokens_per_second, and any others that were logged, in
    order of name; a number that was not logged is nan. Rows by run_id and step. Torn lines are ignored; of lines of one
    step, as a resume leaves, the last counts, field by field.

    Args:
      folder: of a sweep, collected or not; or of a run.
      runs: run_ids of a sweep, those that are not there left out; all when not given.
    Raises:
      TableError: no such folder, or one that holds neither.
    """
    folder = Path(folder)
    if (folder / METRICS).exists():
        return _frame(_arranged(_read([folder])))
    if not (folder / "runs").is_dir() and not (folder / FILE).exists():
        what = "holds no runs/, no metrics.parquet and no metrics.jsonl" if folder.is_dir() else "no such folder"
        raise TableError(f"{folder}: {what}")
    kept, index = _kept(folder / FILE)
    now = read_stamps(folder / "runs") if (folder / "runs").is_dir() else index
    if runs is not None:
        asked = set(runs)
        now = {run_id: stamp for run_id, stamp in now.items() if run_id in asked}
    return _frame(_merged(kept, index, now, folder))


def compact_metrics(folder: Path) -> CompactionSummary:
    """Brings <folder>/metrics.parquet up to its runs' metrics.jsonl, by rename; reads those that changed.

    Raises TableError when the folder holds no runs.
    """
    if not (folder / "runs").is_dir():
        raise TableError(f"{folder}: holds no runs/")
    now, path = read_stamps(folder / "runs"), folder / FILE
    if (whole := _whole(path)) is not None and _index(whole.schema.to_arrow_schema()) == now:
        return CompactionSummary(path, len(now), whole.num_rows, 0, 0)
    kept, index = _kept(path)
    table = _merged(kept, index, now, folder)
    table = table.replace_schema_metadata({_INDEX: json.dumps({"schema": SCHEMA, "runs": now})})
    floats = [field.name for field in table.schema if pa.types.is_floating(field.type)]
    options: dict[str, Any] = {"use_dictionary": ["run_id"], "use_byte_stream_split": floats}
    write_by_rename(path, lambda temporary: pq.write_table(table, temporary, compression="zstd", **options))
    read = sum(index.get(run_id) != stamp for run_id, stamp in now.items())
    return CompactionSummary(path, len(now), table.num_rows, read, len(index.keys() - now.keys()))


def read_stamps(runs: Path) -> dict[str, FileStamp]:
    """run_id -> stamp of its metrics.jsonl, of the run folders that have one, in order."""
    found = {}
    for run in runs.iterdir():
        try:
            stat = (run / METRICS).stat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        found[run.name] = FileStamp(stat.st_size, stat.st_mtime_ns)
    return dict(sorted(found.items()))


def _index(schema: pa.Schema) -> dict[str, FileStamp]:
    """The stamps of what a file holds; none when it is not one of ours, or of another version: it is made anew."""
    try:
        said = json.loads((schema.metadata or {})[_INDEX])
        return {run_id: FileStamp(*stamp) for run_id, stamp in said["runs"].items()} if said["schema"] == SCHEMA else {}
    except (KeyError, ValueError, TypeError):
        return {}


def _whole(path: Path) -> pq.FileMetaData | None:
    """What a Parquet file says of itself at its end; None where it is none."""
    try:
        return pq.read_metadata(path)
    except (FileNotFoundError, pa.ArrowInvalid):
        return None


def _kept(path: Path) -> tuple[pa.Table, dict[str, FileStamp]]:
    """What a compacted file holds, and its stamps; nothing when it is none."""
    try:
        table = pq.read_table(path, read_dictionary=["run_id"])
    except (FileNotFoundError, pa.ArrowInvalid):
        return _EMPTY, {}
    index = _index(table.schema)
    return (table, index) if index else (_EMPTY, {})


def _merged(kept: pa.Table, index: Mapping[str, FileStamp], now: Mapping[str, FileStamp], folder: Path) -> pa.Table:
    """The rows of the runs in `now`: kept where their files are as they were, else read anew."""
    if any(stamp != now.get(run_id) for run_id, stamp in index.items()):
        ids = kept["run_id"].combine_chunks()
        stays = np.array([index.get(run_id) == now.get(run_id) for run_id in ids.dictionary.to_pylist()], bool)
        kept = kept.filter(pa.array(stays[ids.indices.to_numpy()]))
    fresh = [folder / "runs" / run_id for run_id, stamp in now.items() if index.get(run_id) != stamp]
    return _arranged([kept, *_read(fresh)]) if fresh else kept


def _read(runs: Sequence[Path]) -> Iterator[pa.Table]:
    """The lines of run folders, one row a step, in batches of a size that parses well."""
    batch: dict[str, bytes] = {}
    size = 0
    for run in runs:
        batch[run.name] = read_whole_lines(run / METRICS)
        size += len(batch[run.name])
        if size > _BATCH:
            yield from _parsed(batch)
            batch, size = {}, 0
    yield from _parsed(batch)


def read_whole_lines(path: Path) -> bytes:
    """The text of a file, less a last line that is torn. Nothing when the file has vanished meanwhile."""
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return b""
    whole = text.rfind(b"\n") + 1
    if whole < len(text):
        text = text + b"\n" if _line(text[whole:]) else text[:whole]
    return text


def _line(text: bytes) -> dict[str, Any] | None:
    """A logged line, or None of one that is torn or names no step."""
    try:
        line = json.loads(text)
        return line if type(line["step"]) is int else None
    except (ValueError, KeyError, TypeError, IndexError):
        return None


def _parsed(batch: Mapping[str, bytes]) -> Iterator[pa.Table]:
    """The lines of runs, by run_id. Where one is no JSON they are halved until it stands alone, then read slowly."""
    text = b"".join(batch.values())
    if not text:
        return
    try:
        found = pyarrow.json.read_json(pa.BufferReader(text), parse_options=pyarrow.json.ParseOptions(_KNOWN))
        whole = found.num_rows == text.count(b"\n") and not found["step"].null_count
    except pa.ArrowInvalid:
        found, whole = None, False
    if found is not None and whole:
        yield _by_step(found, {run_id: lines.count(b"\n") for run_id, lines in batch.items()})
    elif len(batch) > 1:
        names = list(batch)
        for half in (names[: len(names) // 2], names[len(names) // 2 :]):
            yield from _parsed({run_id: batch[run_id] for run_id in half})
    else:
        ((run_id, lines),) = batch.items()
        rows = [line for text in lines.splitlines() if (line := _line(text)) is not None]
        if rows:
            yield _by_step(_table(rows), {run_id: len(rows)})


def _table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Lines as Arrow's own reader would have them; what is no number in a column of numbers is left out."""
    names = dict.fromkeys([*_KNOWN.names, *(name for row in rows for name in row)])
    return pa.table({name: _column(name, [row.get(name) for row in rows]) for name in names})


def _column(name: str, values: list[Any]) -> pa.Array:
    if name in _KNOWN.names:
        kind = _KNOWN.field(name).type
        python = int if pa.types.is_integer(kind) else float
        return pa.array([python(v) if isinstance(v, int | float) and np.isfinite(v) else None for v in values], kind)
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        return pa.array([_text(value) for value in values])


def _text(value: Any) -> str | None:
    """A value of a column that holds several kinds of them: JSON, but for text and times, which Arrow recognises."""
    if value is None or isinstance(value, str):
        return value
    return value.isoformat() if isinstance(value, datetime.datetime) else json.dumps(value, default=str)


def _by_step(lines: pa.Table, counts: Mapping[str, int]) -> pa.Table:
    """One row a step of each run, in order: of each field, what the last line of that step that has it says.

    counts: run_id -> lines, in their order.
    """
    run = np.repeat(np.arange(len(counts), dtype=np.int32), list(counts.values()))
    step = lines["step"].to_numpy()
    lines = lines.add_column(0, _EMPTY.schema.field("run_id"), pa.DictionaryArray.from_arrays(run, list(counts)))
    order = np.lexsort((step, run))
    first = np.append(True, (np.diff(run[order]) != 0) | (np.diff(step[order]) != 0))
    if first.all():
        return lines if (np.diff(order) == 1).all() else lines.take(order)
    starts = np.flatnonzero(first)
    ends = np.append(starts[1:], len(order)) - 1
    places = np.arange(len(order))
    columns = []
    for column in lines.columns:
        said = np.maximum.accumulate(np.where(column.is_valid().to_numpy()[order], places, -1))[ends]
        columns.append(column.take(pa.array(order[said], mask=said < starts)))
    return pa.table(columns, schema=lines.schema)


def _arranged(parts: Iterable[pa.Table]) -> pa.Table:
    """One table, rows by run_id, known columns first."""
    tables = [_EMPTY, *parts]
    clashing = _clashing(tables)
    table = pa.concat_tables([_as_text(one, clashing) for one in tables], promote_options="permissive")
    table = table.select([*_EMPTY.column_names, *sorted(set(table.column_names) - set(_EMPTY.column_names))])
    table = table.unify_dictionaries().combine_chunks()
    ids = table["run_id"].combine_chunks()
    names = ids.dictionary.to_pylist()
    rank = np.empty(len(names), np.int32)
    rank[np.argsort(np.array(names, object), kind="stable")] = np.arange(len(names), dtype=np.int32)
    run = rank[ids.indices.to_numpy()]
    return table if (np.diff(run) >= 0).all() else table.take(np.argsort(run, kind="stable"))


def _clashing(tables: Iterable[pa.Table]) -> set[str]:
    """Columns that some runs log as one kind of thing and others as another."""
    kinds: dict[str, set[str]] = {}
    for field in (field for table in tables for field in table.schema):
        if not pa.types.is_null(field.type):
            kind = "number" if pa.types.is_integer(field.type) or pa.types.is_floating(field.type) else str(field.type)
            kinds.setdefault(field.name, set()).add(kind)
    return {name for name, found in kinds.items() if len(found) > 1}


def _as_text(table: pa.Table, names: set[str]) -> pa.Table:
    """The table with these columns as JSON text, where they are not text yet."""
    for name in names & set(table.column_names):
        at, column = table.column_names.index(name), table[name]
        if not pa.types.is_string(column.type):
            text = [_text(value) for value in column.to_pylist()]
            table = table.set_column(at, name, pa.array(text, pa.string()))
    return table


def _frame(table: pa.Table) -> pd.DataFrame:
    frame = table.to_pandas()
    there = frame["run_id"].astype("category").cat.remove_unused_categories()
    return frame.assign(run_id=there.cat.set_categories(sorted(there.cat.categories)))
