"""The logged steps of all runs of a sweep as one table, one row per step; a Parquet file makes reading it fast.

    <sweep>/runs/<run_id>/metrics.jsonl     the source: one line a logged step, appended by the run
    <sweep>/metrics.parquet                 a copy of it, for speed only; it can be deleted at any time

The Parquet file's metadata holds the size and the time of change that each metrics.jsonl had when it was read. A file
that still has both is not read again: `compact_metrics` reads only the others, and `load_metrics` reads from JSONL what
the Parquet file does not hold yet.
"""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypedDict

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.json
import pyarrow.parquet as pq

from analysis.errors import TableError
from analysis.files import parse_json, parse_json_lines, warn_once, write_by_rename
from analysis.tables.run_files import METRICS, METRICS_PARQUET, RUNS, MetricsLine
from analysis.type_checks import find_misfit

SCHEMA = 1
_INDEX = b"scaling.runs"
"""Key of the Parquet metadata that holds the stamps of the files."""
_NUMBERS = ("loss", "grad_norm", "learning_rate", "validation_loss", "tokens_per_second")
_KNOWN = pa.schema([("step", pa.int64()), ("tokens", pa.int64()), *((name, pa.float64()) for name in _NUMBERS)])
_RUN_ID = pa.dictionary(pa.int32(), pa.string())
_EMPTY = pa.schema([("run_id", _RUN_ID), *_KNOWN]).empty_table()
_UNREADABLE = (OSError, MemoryError, ValueError, pa.ArrowException)
"""What pyarrow raises on a file that is absent or damaged."""
_BATCH_BYTES = 1 << 24
"""Bytes of JSONL that are parsed at once: for small files the start of a parse costs more than the parse."""


class FileStamp(NamedTuple):
    """The size of a file in bytes, and its time of change in nanoseconds: equal stamps mean an unchanged file."""

    size: int
    mtime_ns: int


class StampsDocument(TypedDict):
    """The metadata of the Parquet file."""

    schema: Literal[1]
    runs: dict[str, tuple[int, int]]
    rows: int
    columns: list[str]


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
    grad_norm, learning_rate, validation_loss (nats per token), tokens_per_second, and any others that were logged, by
    name; a number that was not logged is nan. Rows by run_id and step. Torn lines are ignored; of several lines of one
    step, as a resumed run leaves them, the last counts, field by field.

    Args:
      folder: folder of a sweep, collected or not, or of a run.
      runs: run_ids of the sweep to read; those it does not have are left out. Default: all.
    Raises:
      TableError: no such folder, a folder that is neither, or one that has nothing but a damaged metrics.parquet.
    """
    folder = Path(folder)
    if (folder / METRICS).exists():
        return _to_pandas(_concatenate(_read_runs([folder])))
    if not (folder / RUNS).is_dir() and not (folder / METRICS_PARQUET).exists():
        problem = f"holds no {RUNS}/, no {METRICS_PARQUET} and no {METRICS}" if folder.is_dir() else "no such folder"
        raise TableError(f"{folder}: {problem}")
    compacted, old_stamps = _read_compacted(folder / METRICS_PARQUET)
    stamps = read_stamps(folder / RUNS) if (folder / RUNS).is_dir() else old_stamps
    if not old_stamps and not (folder / RUNS).is_dir():
        raise TableError(f"{folder / METRICS_PARQUET}: damaged, or of another version; collect the sweep again")
    if runs is not None:
        wanted = set(runs)
        stamps = {run_id: stamp for run_id, stamp in stamps.items() if run_id in wanted}
    return _to_pandas(_update(compacted, old_stamps, stamps, folder))


def compact_metrics(folder: Path) -> CompactionSummary:
    """Brings <folder>/metrics.parquet up to date with the metrics.jsonl of its runs; reads only those that changed.

    Raises TableError if the folder holds no runs.
    """
    if not (folder / RUNS).is_dir():
        raise TableError(f"{folder}: holds no {RUNS}/")
    stamps, path = read_stamps(folder / RUNS), folder / METRICS_PARQUET
    compacted, old_stamps = _read_compacted(path)
    if old_stamps and old_stamps == stamps:
        return CompactionSummary(path, len(stamps), compacted.num_rows, 0, 0)
    table = _update(compacted, old_stamps, stamps, folder)
    document = {"schema": SCHEMA, "runs": stamps, "rows": table.num_rows, "columns": _describe_columns(table)}
    table = table.replace_schema_metadata({_INDEX: json.dumps(document)})
    floats = [field.name for field in table.schema if pa.types.is_floating(field.type)]
    options: dict[str, Any] = {"use_dictionary": ["run_id"], "use_byte_stream_split": floats}
    options["write_page_checksum"] = True
    write_by_rename(path, lambda temporary: pq.write_table(table, temporary, compression="zstd", **options))
    num_read = sum(old_stamps.get(run_id) != stamp for run_id, stamp in stamps.items())
    return CompactionSummary(path, len(stamps), table.num_rows, num_read, len(old_stamps.keys() - stamps.keys()))


def read_stamps(runs: Path) -> dict[str, FileStamp]:
    """run_id -> stamp of its metrics.jsonl, of the run folders that have one, by run_id."""
    stamps = {}
    for run in runs.iterdir():
        try:
            stat = (run / METRICS).stat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        stamps[run.name] = FileStamp(stat.st_size, stat.st_mtime_ns)
    return dict(sorted(stamps.items()))


def _read_document(table: pa.Table) -> StampsDocument | None:
    """What the metadata of a compacted file says of its table; None if it is not one of ours, of another version, or
    not of this table: the file is then written anew."""
    try:
        document = parse_json((table.schema.metadata or {})[_INDEX])
    except (KeyError, ValueError):
        return None
    if find_misfit(document, StampsDocument):
        return None
    is_same = document["rows"] == table.num_rows and document["columns"] == _describe_columns(table)
    return document if is_same else None


def _describe_columns(table: pa.Table) -> list[str]:
    return [f"{field.name}: {field.type}" for field in table.schema]


def _read_compacted(path: Path) -> tuple[pa.Table, dict[str, FileStamp]]:
    """(rows, stamps) of a compacted file; no rows if there is none, or it is damaged: its pages have checksums, and its
    metadata repeats the number of rows and the columns."""
    try:
        table = pq.read_table(path, read_dictionary=["run_id"], page_checksum_verification=True)
        document = _read_document(table)
    except _UNREADABLE:
        return _EMPTY, {}
    if document is None:
        return _EMPTY, {}
    return table, {run_id: FileStamp(*stamp) for run_id, stamp in document["runs"].items()}


def _update(
    compacted: pa.Table, old_stamps: Mapping[str, FileStamp], stamps: Mapping[str, FileStamp], folder: Path
) -> pa.Table:
    """The rows of the runs in `stamps`: from the compacted table if their files have not changed, else read anew."""
    if any(stamp != stamps.get(run_id) for run_id, stamp in old_stamps.items()):
        ids = compacted["run_id"].combine_chunks()
        # keep the rows of unchanged runs: one test for each run_id of the dictionary, then a look-up for each row
        is_unchanged = np.array([old_stamps.get(name) == stamps.get(name) for name in ids.dictionary.to_pylist()], bool)
        compacted = compacted.filter(pa.array(is_unchanged[ids.indices.to_numpy()]))
    changed = [folder / RUNS / run_id for run_id, stamp in stamps.items() if old_stamps.get(run_id) != stamp]
    return _concatenate([compacted, *_read_runs(changed)]) if changed else compacted


def _read_runs(runs: Sequence[Path]) -> Iterator[pa.Table]:
    """The lines of run folders, one row per step, a table for each batch of about _BATCH_BYTES."""
    batch: dict[Path, bytes] = {}
    size = 0
    for run in runs:
        batch[run] = read_whole_lines(run / METRICS)
        size += len(batch[run])
        if size > _BATCH_BYTES:
            yield from _parse(batch)
            batch, size = {}, 0
    yield from _parse(batch)


def read_whole_lines(path: Path) -> bytes:
    """The text of a file without a torn last line; empty if the file no longer exists, or, with a warning, if it cannot
    be read."""
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        warn_once(f"{path} is left out: it cannot be read ({error.strerror or error})")
        return b""
    end = text.rfind(b"\n") + 1
    if end < len(text):
        # a last line without its newline may be whole all the same
        text = text + b"\n" if _is_logged_line(text[end:]) else text[:end]
    return text


def _is_logged_line(text: bytes) -> bool:
    """Whether a line is whole and names a step."""
    try:
        return not find_misfit(parse_json(text), MetricsLine)
    except ValueError:
        return False


def _parse(batch: Mapping[Path, bytes]) -> Iterator[pa.Table]:
    """Parses the lines of runs. batch: run folder -> text. Arrow's fast parser refuses a batch with one bad line: then
    the batch is halved until the run with that line is alone, and that run is parsed line by line."""
    if not any(batch.values()):
        return
    lines = _parse_flat(b"".join(batch.values())) if all(map(_is_flat, batch.values())) else None
    if lines is not None:
        yield _merge_steps(lines, {run.name: part.count(b"\n") for run, part in batch.items()})
    elif len(batch) > 1:
        runs = list(batch)
        for half in (runs[: len(runs) // 2], runs[len(runs) // 2 :]):
            yield from _parse({run: batch[run] for run in half})
    else:
        ((run, part),) = batch.items()
        rows = [row for _, row in parse_json_lines(part, run / METRICS, MetricsLine)]
        if rows:
            yield _merge_steps(_to_arrow(rows), {run.name: len(rows)})


def _is_flat(text: bytes) -> bool:
    """Whether each line may be an object without others in it. Arrow's parser must see no other text: lists that are
    nested 100,000 deep end its process, and it reads NaN and Infinity, which are no JSON."""
    return text.count(b"{") == text.count(b"\n") and not any(sign in text for sign in (b"[", b"NaN", b"Inf"))


def _parse_flat(text: bytes) -> pa.Table | None:
    """Lines parsed by Arrow, one row each; None where they are not all whole and right."""
    try:
        text.decode()  # Arrow accepts other bytes, and names columns by them
        lines = pyarrow.json.read_json(pa.BufferReader(text), parse_options=pyarrow.json.ParseOptions(_KNOWN))
    except (pa.ArrowInvalid, UnicodeDecodeError):
        return None
    return lines if lines.num_rows == text.count(b"\n") and not lines["step"].null_count else None


def _to_arrow(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Parsed lines as a table with the types that Arrow's parser gives."""
    names = dict.fromkeys([*_KNOWN.names, *(name for row in rows for name in row)])
    return pa.table({name: _column(name, [row.get(name) for row in rows]) for name in names})


def _column(name: str, values: list[Any]) -> pa.Array:
    if name in _KNOWN.names:
        kind = _KNOWN.field(name).type
        python = int if pa.types.is_integer(kind) else float
        is_number = [value is not None and abs(value) < (2**63 if python is int else math.inf) for value in values]
        return pa.array([python(v) if ok else None for v, ok in zip(values, is_number, strict=True)], kind)
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        return pa.array([_text(value) for value in values])


def _text(value: Any) -> str | None:
    """A value of a column that holds values of several types, as text: JSON, except text itself and times, which Arrow
    recognises."""
    if value is None or isinstance(value, str):
        return value
    return value.isoformat() if isinstance(value, datetime.datetime) else json.dumps(value, default=str)


def _merge_steps(lines: pa.Table, counts: Mapping[str, int]) -> pa.Table:
    """One row for each step of each run, by run and step. Of several lines of one step, each field has the value of the
    last line that has the field.

    counts: run_id -> number of lines, in the order of the lines.
    """
    run = np.repeat(np.arange(len(counts), dtype=np.int32), list(counts.values()))
    step = lines["step"].to_numpy()
    lines = lines.add_column(0, _EMPTY.schema.field("run_id"), pa.DictionaryArray.from_arrays(run, list(counts)))
    order = np.lexsort((step, run))  # stable: lines of one step stay in the order in which they were written
    first = np.append(True, (np.diff(run[order]) != 0) | (np.diff(step[order]) != 0))
    if first.all():
        return lines if (np.diff(order) == 1).all() else lines.take(order)
    starts = np.flatnonzero(first)
    ends = np.append(starts[1:], len(order)) - 1
    places = np.arange(len(order))
    columns = []
    for column in lines.columns:
        # for each step, the place of the last line with a value up to its end; null if that line is of an earlier step
        last_valid = np.maximum.accumulate(np.where(column.is_valid().to_numpy()[order], places, -1))[ends]
        columns.append(column.take(pa.array(order[last_valid], mask=last_valid < starts)))
    return pa.table(columns, schema=lines.schema)


def _concatenate(parts: Iterable[pa.Table]) -> pa.Table:
    """One table, rows by run_id, known columns first."""
    tables = [_EMPTY, *parts]
    mixed = _mixed_columns(tables)
    table = pa.concat_tables([_as_text(part, mixed) for part in tables], promote_options="permissive")
    table = table.select([*_EMPTY.column_names, *sorted(set(table.column_names) - set(_EMPTY.column_names))])
    table = table.unify_dictionaries().combine_chunks()
    ids = table["run_id"].combine_chunks()
    names = ids.dictionary.to_pylist()
    # rank[code of a run_id in the dictionary] = its place in alphabetical order
    rank = np.empty(len(names), np.int32)
    rank[np.argsort(np.array(names, object), kind="stable")] = np.arange(len(names), dtype=np.int32)
    run = rank[ids.indices.to_numpy()]
    return table if (np.diff(run) >= 0).all() else table.take(np.argsort(run, kind="stable"))


def _mixed_columns(tables: Iterable[pa.Table]) -> set[str]:
    """The columns that have one type in some runs and another type in others, where all numbers are one type."""
    kinds: dict[str, set[str]] = {}
    for field in (field for table in tables for field in table.schema):
        if not pa.types.is_null(field.type):
            kind = "number" if pa.types.is_integer(field.type) or pa.types.is_floating(field.type) else str(field.type)
            kinds.setdefault(field.name, set()).add(kind)
    return {name for name, types in kinds.items() if len(types) > 1}


def _as_text(table: pa.Table, names: set[str]) -> pa.Table:
    """The table with these columns as JSON text, unless they are text already."""
    for name in names & set(table.column_names):
        at, column = table.column_names.index(name), table[name]
        if not pa.types.is_string(column.type):
            text = [_text(value) for value in column.to_pylist()]
            table = table.set_column(at, name, pa.array(text, pa.string()))
    return table


def _to_pandas(table: pa.Table) -> pd.DataFrame:
    """As DataFrame, with the run_ids that occur as sorted categories."""
    frame = table.to_pandas()
    run_ids = frame["run_id"].astype("category").cat.remove_unused_categories()
    return frame.assign(run_id=run_ids.cat.set_categories(sorted(run_ids.cat.categories)))
