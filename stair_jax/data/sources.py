"""Rows of any kind from a file or from the Hugging Face hub, each with where it stands."""

import codecs
import csv
import io
import json
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from stair_jax.config import ROW_FILES

_LARGEST_FIELD = 1 << 26  # characters of a field of a .csv file


class Located(NamedTuple):
    """A row, and its place for messages: file or hub name, and the row's number from 1."""

    where: str
    row: Any


def is_file(source: str) -> bool:
    """Returns whether a source names a file, there or not, and not a data set of the hub."""
    return pathlib.Path(source).suffix in ROW_FILES or pathlib.Path(source).is_file()


def read(source: str, split: str = "train", subset: str | None = None) -> list[Located]:
    """Returns all rows of a .json list, a .jsonl, .parquet or .csv file, or a split of a hub name.

    The first row of a .csv file names its columns, and is not counted.

    A data set of the hub that has several parts is read from a `subset`.

    Raises:
      ValueError: for a source that is not there, is not what its name says, or has no rows.
    """
    if is_file(source):
        rows, name = _file(pathlib.Path(source)), source
    else:
        rows, name = _hub(source, split, subset), f"{source}[{split}]"
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{name}: found no rows, expected a list of at least one")
    found = [Located(f"{name}:{number}", row) for number, row in enumerate(rows, start=1)]
    for where, row in found:
        _check_texts(where, row)
    return found


def stream(source: str, split: str = "train", subset: str | None = None) -> Iterator[Located]:
    """Yields the rows that `read` returns, one by one where the form allows it; raises as it does.

    Of .jsonl files and data sets of the hub only one row is in memory at a time.
    """
    path = pathlib.Path(source)
    if is_file(source) and not (path.suffix == ".jsonl" and path.is_file() and not _utf16(path)):
        yield from read(source, split, subset)
        return
    name, rows = source, _each_line(path)
    if not is_file(source):
        name, rows = f"{source}[{split}]", _hub_set(source, split, subset)
    number = 0
    for number, row in enumerate(rows, start=1):
        where = f"{name}:{number}"
        _check_texts(where, row)
        yield Located(where, row)
    if not number:
        raise ValueError(f"{name}: found no rows, expected a list of at least one")


def _utf16(path: pathlib.Path) -> bool:
    with open(path, "rb") as file:
        return file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def _each_line(path: pathlib.Path) -> Iterator[Any]:
    """Yields the rows of a .jsonl file."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            begin = codecs.BOM_UTF8 if number == 1 and line.startswith(codecs.BOM_UTF8) else b""
            text = _decoded(path, line.removeprefix(begin), number)
            if text.strip():
                yield _parsed(f"{path}:{number}", text)


def _decoded(path: pathlib.Path, data: bytes, row: int) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}:{row}: byte {data[error.start]:#04x} in column {error.start + 1} is not UTF-8"
            f" ({error.reason}); save the file as UTF-8"
        ) from None


def _file(path: pathlib.Path) -> Any:
    if not path.is_file():
        raise ValueError(f"{path}: no such file, expected {', '.join(ROW_FILES)} with one row each")
    if path.suffix == ".jsonl":
        return _json_lines(path)
    if path.suffix == ".json":
        return _parsed(str(path), _text(path), rows=False)
    if path.suffix == ".csv":
        return _comma_separated(path)
    if path.suffix == ".parquet":
        import pyarrow  # only where such a file is read
        from pyarrow import parquet

        try:
            return parquet.read_table(path).to_pylist()
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(f"{path}: not Parquet ({_line(error)})") from None
    raise ValueError(f"{path}: found {path.suffix or 'no suffix'}, expected {', '.join(ROW_FILES)}")


def _text(path: pathlib.Path) -> str:
    """Returns the text of a file in UTF-8, or in UTF-16 where its first bytes say so.

    Raises:
      ValueError: for any other, naming the first byte that does not fit.
    """
    data = path.read_bytes()
    utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return data.decode("utf-16" if utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start]
        row, column = before.count(b"\n") + 1, error.start - (before.rfind(b"\n") + 1) + 1
        raise ValueError(
            f"{path}:{row}: byte {data[error.start]:#04x} in column {column} is not"
            f" {'UTF-16' if utf16 else 'UTF-8'} ({error.reason}); save the file as UTF-8"
        ) from None


def _json_lines(path: pathlib.Path) -> list[Any]:
    """Returns the rows of a file with one a line; a last one that is cut is an error as any."""
    lines = _text(path).split("\n")
    return [
        _parsed(f"{path}:{number}", line)
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]


def _comma_separated(path: pathlib.Path) -> list[dict[str, str]]:
    """Returns the rows of a file whose first row names the columns.

    Raises:
      ValueError: for a row that has more or fewer fields, or quotes that do not close.
    """
    csv.field_size_limit(_LARGEST_FIELD)
    lines = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    try:
        columns = next(lines, [])
        rows = [row for row in lines if row]
    except csv.Error as error:
        raise ValueError(f"{path}: line {lines.line_num}: not CSV ({error})") from None
    if len(set(columns)) < len(columns):
        raise ValueError(f"{path}: columns {columns}: found the same name twice")
    for number, row in enumerate(rows, start=1):
        if len(row) != len(columns):
            raise ValueError(
                f"{path}:{number}: found {len(row)} fields, expected one for each of {columns}"
            )
    return [dict(zip(columns, row, strict=True)) for row in rows]


def _parsed(where: str, text: str, *, rows: bool = True) -> Any:
    """Returns what JSON says; ValueError that names the place where it is none.

    Args:
      where: the text stands.
      text: of one row, or with `rows` off of a whole file, whose lines are then told.
    """
    try:
        return json.loads(text, parse_constant=_no_number)
    except json.JSONDecodeError as error:
        line = "" if rows else f":{error.lineno}"
        cut = (
            "; the row is cut"
            if error.pos >= len(text.rstrip()) or "Unterminated" in error.msg
            else ""
        )
        raise ValueError(
            f"{where}{line}: not JSON ({error.msg} in column {error.colno}){cut}"
        ) from None
    except RecursionError:
        raise ValueError(f"{where}: not JSON that can be read (nested too deeply)") from None
    except ValueError as error:
        raise ValueError(f"{where}: not JSON ({error})") from None


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _check_texts(where: str, value: Any, key: str = "") -> None:
    """Refuses texts that cannot be written down: halves of a surrogate pair, from a cut escape."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{where}: {key or 'the row'}: character {error.start + 1} is"
                f" {value[error.start]!a}, half of a surrogate pair, which no text can hold"
            ) from None
    elif isinstance(value, dict):
        for name, inner in value.items():
            _check_texts(where, inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            _check_texts(where, inner, f"{key}[{number}]")


def _hub(name: str, split: str, subset: str | None) -> list[Any]:
    return _hub_set(name, split, subset).to_list()


def _hub_set(name: str, split: str, subset: str | None) -> Any:
    """Returns a `datasets.Dataset`, whose rows stay on the disk until they are asked for."""
    import datasets  # slow to import, and only where a hub name is read

    try:
        return datasets.load_dataset(name, subset, split=split)
    except Exception as error:  # of many libraries: the hub's, HTTP's, the readers'
        raise ValueError(
            f"{name}: neither a file nor a data set of the Hugging Face hub with split {split!r}"
            f" ({type(error).__name__}: {_line(error)})"
        ) from None


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0][:200]
