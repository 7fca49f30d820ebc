"""Read rows from wherever they are, each with the place it came from.

A row is one dict of columns. Its origin is `file:number`, the line in .jsonl and elsewhere the row of data, counted
from 1.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

MAX_FAULTS = 20
"""Faults that an error prints; the others are counted."""

SPLITS = ("train", "test", "validation", "valid", "val", "dev", "eval")
"""Words in the file names of a folder that mean a split, as in train-00000.parquet or gsm8k_test.jsonl."""

LEGEND = "(the number is the line in a .jsonl file, elsewhere the row of data, counted from 1)"


class DataError(ValueError):
    """The data cannot be used; the message names each fault by file, row and column."""

    def __init__(self, message: str) -> None:
        super().__init__("\n".join(map(printable, message.split("\n"))))


class Fault(ValueError):
    """What is wrong with one row, and what to do about it."""


class Faults:
    """The faults of a source, collected so that one reading names them all."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.count = 0

    def add(self, place: str, what: object) -> None:
        """Note a fault at a place."""
        self.count += 1
        if self.count <= MAX_FAULTS:
            self.lines.append(f"{place}: {what}")

    @contextmanager
    def at(self, place: str) -> Iterator[None]:
        """Turn a `Fault` raised inside into a note, so that the next row is still looked at; bottomless rows too."""
        try:
            yield
        except Fault as fault:
            self.add(place, fault)
        except RecursionError:
            self.add(place, "a value is nested too deeply to be data: leave it out, or write it as a string")

    def check(self) -> None:
        """Raise DataError if there was any fault."""
        if self.count:
            more = [f"... and {self.count - MAX_FAULTS} more faults"] if self.count > MAX_FAULTS else []
            raise DataError("\n".join([*self.lines, *more, LEGEND]))


class Row(NamedTuple):
    """One row of data and the place it came from."""

    origin: str
    values: dict[str, Any]


def read_rows(source: Any, *, split: str = "train") -> list[Row]:
    """Read every row of a file, a folder, a Dataset, a list of dicts or a dataset of the hub.

    A string that names something local is never looked up on the hub, and one that looks like a file never either.

    Args:
        source: path of a .jsonl, .json, .csv or .parquet file; a folder of such files or one that
            `datasets.save_to_disk` wrote; a `datasets.Dataset`; a list of dicts, or of `Row`s that were read
            elsewhere; `owner/name` or `owner/name:config` of the hub.
        split: the split to take where the source has several.

    Raises:
        DataError: if there are no rows, or a row cannot be read.
    """
    faults = Faults()
    try:
        rows = list(_rows_of(source, split, faults))
    except OSError as error:  # a folder that may not be looked into, a name that is too long
        raise DataError(f"{_name(source)}: cannot be read: {error.strerror or error}") from error
    faults.check()
    if not rows:
        raise DataError(f"{_name(source)}: no rows: expected at least one row of data")
    return rows


def printable(text: str) -> str:
    r"""Write each character that a terminal would obey and not show as an escape: data may hold anything.

    >>> print(printable("\x1b[31mred\n"))
    \x1b[31mred\n
    """
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def nearest(name: str, names: Iterable[str]) -> str:
    """Return a question that names what was probably meant, or nothing."""
    close = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def no_such_folder(place: str) -> str:
    """Say that a folder is not there and what was probably meant; nothing where it is, or for what may be a hub id."""
    path = Path(place).expanduser()
    local = path.is_absolute() or place.startswith((".", "~")) or (path.parent != Path() and path.parent.is_dir())
    if not local or path.is_dir():
        return ""
    siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    return f"no such folder{nearest(path.name, siblings)}"


def kind(value: object) -> str:
    """Name the type of a value in JSON's words."""
    words = {type(None): "null", bool: "a boolean", int: "a number", float: "a number", str: "a string"}
    containers = {list: "a list", tuple: "a list", dict: "an object"}
    return (words | containers).get(type(value), f"a {type(value).__name__}")


def check_names(names: Sequence[Any], place: str) -> None:
    """Refuse column names that are empty, no strings, or given twice."""
    for number, name in enumerate(names, start=1):
        if not isinstance(name, str) or not name.strip():
            raise DataError(f"{place}: column {number} has the name {name!r}: give every column a name")
        if name in names[: number - 1]:
            raise DataError(f"{place}: {name}: two columns have this name: rename or remove one")


def _rows_of(source: Any, split: str, faults: Faults) -> Iterable[Row]:
    if isinstance(source, Path):
        return _read_path(source.expanduser(), split, faults)
    if isinstance(source, str):
        path = Path(source).expanduser()
        return _read_path(path, split, faults) if path.exists() or _looks_local(source) else _read_hub(source, split)
    if isinstance(source, list | tuple):
        if source and all(isinstance(each, Row) for each in source):
            return source  # of elsewhere, which their origins tell
        return _numbered(source, "rows", faults)
    # A Dataset can only have come from a library that is imported already.
    datasets = sys.modules.get("datasets")
    if datasets and isinstance(source, datasets.Dataset | datasets.DatasetDict):
        return _read_dataset(source, split, "dataset")
    if datasets and isinstance(source, datasets.IterableDataset | datasets.IterableDatasetDict):
        raise DataError(f"{_name(source)}: has no known end: pass list(dataset.take(n))")
    raise DataError(f"expected a path, a Dataset, a list of dicts or a hub id, got {kind(source)}")


def _name(source: Any) -> str:
    return str(source) if isinstance(source, str | Path) else "rows" if isinstance(source, list | tuple) else "dataset"


def _looks_local(source: str) -> bool:
    """Tell a mistyped path from a hub id: by its suffix, its shape, or a folder of it that is there."""
    path = Path(source)
    is_hub_id = re.fullmatch(r"[\w.-]+(/[\w.-]+)?(:[\w.-]+)?", source)
    has_suffix = re.search(r"\.[A-Za-z]\w*$", source)
    in_a_folder = path.parent != Path() and path.parent.exists()
    return bool(not is_hub_id or has_suffix or in_a_folder or source.startswith("."))


def _read_path(path: Path, split: str, faults: Faults) -> Iterable[Row]:
    if not path.exists():
        siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise DataError(f"{path}: no such file or folder{nearest(path.name, siblings)}")
    return _read_folder(path, split, faults) if path.is_dir() else _read_file(path, faults)


def _read_file(path: Path, faults: Faults) -> list[Row]:
    readers = {".jsonl": _read_jsonl, ".json": _read_json, ".csv": _read_csv, ".parquet": _read_parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: unknown suffix {path.suffix!r}: expected one of {', '.join(readers)}")
    try:
        if path.stat().st_size == 0:
            raise DataError(f"{path}: the file is empty: expected at least one row of data")
        return reader(path, faults)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def _read_folder(folder: Path, split: str, faults: Faults) -> Iterable[Row]:
    if any((folder / name).exists() for name in ("dataset_dict.json", "dataset_info.json")):
        import datasets

        try:
            saved = datasets.load_from_disk(str(folder))
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"{folder}: not a readable dataset of save_to_disk: {error}") from error
        return _read_dataset(saved, split, str(folder))
    files = _files_of_split(folder, split)
    parts = [(file, _read_file(file, faults)) for file in files]
    _check_same_columns(parts, faults)
    return [row for _, rows in parts for row in rows]


def _files_of_split(folder: Path, split: str) -> list[Path]:
    """Return the files named after the split, or those named after none: training never reads a test file."""
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in (".jsonl", ".json", ".csv", ".parquet"))
    if not files:
        raise DataError(f"{folder}: no data in this folder: expected .jsonl, .json, .csv or .parquet files")
    splits = {file: {*re.findall(r"[^\W\d_]+", file.stem.lower())} & {*SPLITS, split} for file in files}
    for file, named in splits.items():
        if len(named) > 1:
            what = f"its name has {' and '.join(map(repr, sorted(named)))}, and a file is of one split"
            raise DataError(f"{file}: {what}: rename it, or name the file instead of its folder")
    unnamed = [file for file in files if not splits[file]] if split == "train" else []
    chosen = [file for file in files if split in splits[file]] or unnamed
    if not chosen:
        raise DataError(f"{folder}: no file of split {split!r}; there are {', '.join(file.name for file in files)}")
    return chosen


def _check_same_columns(parts: list[tuple[Path, list[Row]]], faults: Faults) -> None:
    """Note the columns of a file that another file of the folder lacks; what rows lack is looked at later."""
    columns = {file: dict.fromkeys(name for row in rows for name in row.values) for file, rows in parts if rows}
    for file, names in columns.items():
        for other, others in columns.items():
            for name in others:
                if name not in names:
                    faults.add(
                        str(file),
                        f"{name}: missing, but {other.name} has it: files of one folder need the same columns",
                    )


def _text(path: Path) -> str:
    """Decode a file, with or without a UTF-8 byte order mark."""
    data = path.read_bytes()
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{path}:1: column 1: the file begins with a UTF-16 byte order mark: save it as UTF-8")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - data.rfind(b"\n", 0, error.start)
        what = f"byte 0x{data[error.start]:02x} is not UTF-8: save the file as UTF-8"
        raise DataError(f"{path}:{line}: line {line}, column {column}: {what}") from error
    if not text.strip():
        raise DataError(f"{path}: the file is empty: expected at least one row of data")
    return text


def _read_jsonl(path: Path, faults: Faults) -> list[Row]:
    text = _text(path)
    if text.lstrip().startswith("["):
        what = (
            "a JSON array, where one object a line was expected: rename the file to .json, or write one object a line"
        )
        raise DataError(f"{path}:1: column 1: {what}")
    rows: list[Row] = []
    # Not splitlines(): it would also cut at characters such as U+2028, which a JSON string may hold.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            with faults.at(f"{path}:{number}"):
                rows.append(Row(f"{path}:{number}", _object(_parse(line))))
    return rows


def _read_json(path: Path, faults: Faults) -> list[Row]:
    """Read an array of objects; a .json file of one object a line is common too."""
    text = _text(path)
    if not text.lstrip().startswith("["):
        return _read_jsonl(path, faults)
    try:
        values = _parse(text)
    except Fault as fault:
        raise DataError(f"{path}: {fault}") from fault
    return list(_numbered(values, str(path), faults))


def _parse(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_unique_keys)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}" if "\n" in text else f"column {error.colno}"
        advice = "expected one whole JSON object a line, its strings in double quotes"
        if error.msg == "Extra data":
            advice = "something follows the end of the value: put every object on a line of its own"
        raise Fault(f"{where}: invalid JSON ({error.msg}): {advice}") from error
    except RecursionError as error:
        raise Fault("column 1: invalid JSON: nested too deeply to be a row of data") from error
    except Fault:
        raise
    except ValueError as error:
        raise Fault(f"column 1: invalid JSON ({error})") from error


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise Fault(f"{twice}: this key occurs twice in one object: keep one of them")
    return values


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise Fault(f'column 1: expected an object such as {{"prompt": "..."}}, got {kind(value)}')
    unnamed = next((name for name in value if not isinstance(name, str) or not name.strip()), None)
    if unnamed is not None:
        raise Fault(f"a column has the name {unnamed!r}: give every column a name")
    return dict(value)


def _numbered(values: Iterable[Any], name: str, faults: Faults) -> Iterator[Row]:
    for number, value in enumerate(values, start=1):
        with faults.at(f"{name}:{number}"):
            yield Row(f"{name}:{number}", _object(value))


def _read_csv(path: Path, faults: Faults) -> list[Row]:
    reader = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    rows: list[Row] = []
    # A cell may hold a whole document; the limit of 128 KiB is meant for other uses.
    limit = csv.field_size_limit(2**31 - 1)
    try:
        header = next(line for line in reader if line)
        check_names(header, f"{path}: header")
        for cells in filter(None, reader):
            origin = f"{path}:{len(rows) + 1}"
            rows.append(Row(origin, dict(zip(header, cells, strict=False))))
            if len(cells) != len(header):
                column = header[len(cells)] if len(cells) < len(header) else header[-1]
                advice = "put cells that hold commas or quotes in double quotes"
                what = f"{len(cells)} cells where the header has {len(header)}: {advice}"
                faults.add(origin, f"{column}: {what}")
    except csv.Error as error:
        what = f"line {reader.line_num}: {error}: close every quote, and double those inside a cell"
        raise DataError(f"{path}:{len(rows) + 1}: {what}") from error
    finally:
        csv.field_size_limit(limit)
    return rows


def _read_parquet(path: Path, faults: Faults) -> list[Row]:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    try:
        table = parquet.ParquetFile(path).read()
    except (pa.ArrowException, OSError) as error:
        reason = str(error).split("\n")[0]
        raise DataError(f"{path}: not a readable Parquet file ({reason}): write it again, or fetch it again") from error
    check_names(table.column_names, str(path))
    return list(_numbered(table.to_pylist(), str(path), faults))


def _read_dataset(dataset: Any, split: str, name: str) -> Iterator[Row]:
    if isinstance(dataset, dict):
        if split not in dataset:
            raise DataError(f"{name}: no split {split!r}; there are {', '.join(map(repr, dataset))}: name one of them")
        dataset = dataset[split]
    return (Row(f"{name}:{number}", row) for number, row in enumerate(dataset, start=1))


def _read_hub(source: str, split: str) -> Iterator[Row]:
    import datasets

    name, _, config = source.partition(":")
    try:
        dataset = datasets.load_dataset(name, config or None, split=split)
    except (OSError, ValueError) as error:
        what = "no local file or folder, and the hub does not give it as a dataset"
        advice = "check the name; one configuration of several is named as in owner/name:config"
        raise DataError(f"{source}: {what} ({error}): {advice}") from error
    return _read_dataset(dataset, split, source)
