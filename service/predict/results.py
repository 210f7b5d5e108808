"""A table of results that grows picture by picture, and goes on where it was when it is opened again.

While it grows it is lines of JSON: for a ``.jsonl`` file itself, for others a journal beside the file, out of which the
file is made at the end. What a crash has torn off is the last line, and that picture is done again.
"""

from __future__ import annotations

import csv
import fcntl
import json
import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self, TextIO

Record = dict[str, Any]
"""Of one picture: ``file`` and ``model``, and ``predictions`` or else ``error`` and ``detail``."""

_ROWS = 10_000
"""So many go into a row group, and are held in memory at once."""
_OPENING = b'{"file": '
"""With this our lines begin, torn ones too."""
_TOLD = ("label", "score", "index", "wnid")


class ResultsError(Exception):
    """The results cannot be kept in this file; the message says why."""


class Results:
    """The results in a file; within it is open.

    ``done`` are the files that were in it before, ``failed`` is how many of all pictures could not be named.
    """

    def __init__(self, path: Path, model: str) -> None:
        """Raise ResultsError if it is no file for results, or cannot be there."""
        self._format = format_of(path)
        self.path = path
        self.done: set[str] = set()
        self.failed = 0
        self._model = model
        self._journal = path if self._format is JSON_LINES else _journal_of(path)
        self._stream: TextIO | None = None

    def __enter__(self) -> Self:
        """Raise ResultsError, and leave all as it is, if there is something else than results of this model."""
        if self._journal.exists():
            self._know(_records(JSON_LINES, self._journal))
        elif self.path.exists():
            self._know(_records(self._format, self.path))
            return self  # it is whole, and remains as it is until there is more
        self._stream = self._opened()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._stream is None:
            return
        with self._stream:  # which keeps others out until all is done
            if error is None and self._journal != self.path:
                _replace(self.path, lambda path: self._format.write(path, partial(_records, JSON_LINES, self._journal)))
                self._journal.unlink()

    def add(self, record: Record) -> None:
        """Keep a result; it outlives the process from here on."""
        if self._stream is None:
            self._stream = self._opened()
        self._stream.write(_line(record))
        self._stream.flush()
        self.failed += "error" in record

    def _know(self, records: Iterable[Record]) -> None:
        for record in records:
            if record["model"] != self._model:
                raise ResultsError(
                    f"{self.path} has results of the model {record['model']!r}, and these are of {self._model!r}: "
                    "choose another file, or --overwrite it"
                )
            self.done.add(record["file"])
            self.failed += "error" in record

    def _opened(self) -> TextIO:
        if not self._journal.exists() and self.path.exists():
            _replace(self._journal, lambda path: JSON_LINES.write(path, partial(_records, self._format, self.path)))
        stream = self._journal.open("a", encoding="utf-8")
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.close()
            raise ResultsError(f"another command is writing {self.path}; wait for it, or choose another file") from None
        _cut_torn_line(self._journal)
        return stream

    @staticmethod
    def remove(path: Path) -> None:
        """Remove the results in a file, finished or not."""
        for each in (path, _journal_of(path)):
            each.unlink(missing_ok=True)


Records = Callable[[], Iterator[Record]]
"""The records from the first on, each time it is called."""


class Format(NamedTuple):
    """How records are read from a file, and written to a new one."""

    read: Callable[[Path], Iterator[Record]]
    write: Callable[[Path, Records], None]


def format_of(path: Path) -> Format:
    """The format that a file's name asks for.

    Raises:
        ResultsError: there is none, what it needs is not installed, or there is no such folder.
    """
    if path.suffix not in FORMATS:
        raise ResultsError(f"{path} is none of {', '.join(f'*{suffix}' for suffix in FORMATS)}")
    if path.suffix == ".parquet" and find_spec("pyarrow") is None:
        raise ResultsError("for Parquet pyarrow is needed: pip install 'volo-serve[parquet]'")
    if not path.absolute().parent.is_dir():
        raise ResultsError(f"there is no folder {path.parent}")
    return FORMATS[path.suffix]


def _records(format_: Format, path: Path) -> Iterator[Record]:
    """The records in a file; raises ResultsError if there is something else in it."""
    row = 1
    try:
        for record in format_.read(path):
            if not (isinstance(record["file"], str) and isinstance(record["model"], str)):
                raise TypeError
            yield record
            row += 1
    except (ValueError, TypeError, LookupError, csv.Error) as error:
        raise ResultsError(f"{path} has something else than results in row {row}") from error


def _read_json(path: Path) -> Iterator[Record]:
    with path.open("rb") as stream:
        for line in stream:
            if line.endswith(b"\n"):
                yield json.loads(line)
            elif not (line.startswith(_OPENING) or _OPENING.startswith(line)):
                raise ValueError("this has not been torn off by a crash, and is not ours")


def _write_json(path: Path, records: Records) -> None:
    with path.open("w", encoding="utf-8") as stream:
        stream.writelines(map(_line, records()))


def _line(record: Record) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"


def _read_csv(path: Path) -> Iterator[Record]:
    with path.open(newline="", encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            record: Record = {"file": row["file"], "model": row["model"]}
            if row["error"]:
                yield {**record, "error": row["error"], "detail": row["detail"]}
                continue
            ranks = (len(row) - 4) // len(_TOLD)
            told = [[row[f"{name}_{rank}"] for name in _TOLD] for rank in range(1, ranks + 1)]
            predictions = [
                {"label": label, "index": int(index), "wnid": wnid or None, "score": float(score)}
                for label, score, index, wnid in told
                if index
            ]
            yield {**record, "predictions": predictions}


def _write_csv(path: Path, records: Records) -> None:
    """A row a picture, with its labels in order: label_1, score_1, index_1, wnid_1, label_2 and so on."""
    ranks = max((len(record.get("predictions", ())) for record in records()), default=0)
    columns = [f"{name}_{rank}" for rank in range(1, ranks + 1) for name in _TOLD]
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, ["file", "model", "error", "detail", *columns])
        writer.writeheader()
        for record in records():
            predictions = record.get("predictions", ())
            told = {f"{name}_{rank}": each[name] for rank, each in enumerate(predictions, 1) for name in _TOLD}
            writer.writerow({**{key: record.get(key) for key in ("file", "model", "error", "detail")}, **told})


def _read_parquet(path: Path) -> Iterator[Record]:
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path) as file:
        for batch in file.iter_batches(_ROWS):
            for row in batch.to_pylist():
                yield {key: value for key, value in row.items() if value is not None}


def _write_parquet(path: Path, records: Records) -> None:
    """A row a picture, with its labels as a list of structs, or null beside an error."""
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    prediction = pa.struct(
        {"label": pa.string(), "index": pa.int32(), "wnid": pa.string(), "score": pa.float64()},
    )
    columns = {"file": pa.string(), "model": pa.string(), "predictions": pa.list_(prediction)}
    schema = pa.schema({**columns, "error": pa.string(), "detail": pa.string()})
    with ParquetWriter(path, schema) as writer:
        rows = records()
        while group := list(islice(rows, _ROWS)):
            writer.write_table(pa.Table.from_pylist(group, schema))


JSON_LINES = Format(_read_json, _write_json)
FORMATS = {
    ".jsonl": JSON_LINES,
    ".csv": Format(_read_csv, _write_csv),
    ".parquet": Format(_read_parquet, _write_parquet),
}


def _journal_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.journal")


def _replace(path: Path, write: Callable[[Path], None]) -> None:
    """Write a file whole or not at all."""
    unfinished = path.with_name(f"{path.name}.unfinished")
    try:
        write(unfinished)
        unfinished.replace(path)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise


def _cut_torn_line(path: Path) -> None:
    with path.open("rb+") as stream:
        stream.seek(0, os.SEEK_END)
        end = place = stream.tell()
        while place and not _ends_line(stream, place):
            place -= 1
        if place < end:
            stream.truncate(place)


def _ends_line(stream: Any, place: int) -> bool:
    stream.seek(place - 1)
    return bool(stream.read(1) == b"\n")
