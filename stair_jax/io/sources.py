"""Rows of any kind from a file or from the Hugging Face hub, each with where it stands."""

import json
import pathlib
from typing import Any, NamedTuple

from stair_jax import records
from stair_jax.config import ROW_FILES


class Located(NamedTuple):
    """A row, and its place for messages: file or hub name, and the row's number from 1."""

    where: str
    row: Any


def is_file(source: str) -> bool:
    """Returns whether a source names a file, there or not, and not a data set of the hub."""
    return pathlib.Path(source).suffix in ROW_FILES or pathlib.Path(source).is_file()


def read(source: str, split: str = "train") -> list[Located]:
    """Returns all rows of a .json list, a .jsonl or .parquet file, or a split of a hub name.

    Raises:
      ValueError: for a source that is not there, is not what its name says, or has no rows.
    """
    if is_file(source):
        rows, name = _file(pathlib.Path(source)), source
    else:
        rows, name = _hub(source, split), f"{source}[{split}]"
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{name}: found no rows, expected a list of at least one")
    return [Located(f"{name}:{number}", row) for number, row in enumerate(rows, start=1)]


def _file(path: pathlib.Path) -> Any:
    if not path.is_file():
        raise ValueError(f"{path}: no such file, expected {', '.join(ROW_FILES)} with one row each")
    if path.suffix == ".jsonl":
        return records.read_json_lines(path)
    if path.suffix == ".json":
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{error.lineno}: not JSON ({error.msg})") from None
    if path.suffix == ".parquet":
        import pyarrow  # only where such a file is read
        from pyarrow import parquet

        try:
            return parquet.read_table(path).to_pylist()
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(f"{path}: not Parquet ({_line(error)})") from None
    raise ValueError(f"{path}: found {path.suffix or 'no suffix'}, expected {', '.join(ROW_FILES)}")


def _hub(name: str, split: str) -> list[Any]:
    import datasets  # slow to import, and only where a hub name is read

    try:
        return datasets.load_dataset(name, split=split).to_list()  # pyright: ignore[reportAttributeAccessIssue] one split is one Dataset
    except Exception as error:  # of many libraries: the hub's, HTTP's, the readers'
        raise ValueError(
            f"{name}: neither a file nor a data set of the Hugging Face hub with split {split!r}"
            f" ({type(error).__name__}: {_line(error)})"
        ) from None


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0][:200]
