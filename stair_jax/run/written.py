"""Which files were written for an artefact, to tell later whether they are all still there."""

import pathlib
from collections.abc import Collection, Mapping


def sizes_of(folder: pathlib.Path, but: Collection[str] = ()) -> dict[str, int]:
    """Returns the size of each file in a folder, by its name below the folder's parent.

    Args:
      folder: may be missing.
      but: names of files, in the folder itself, that may change.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    left_out = {folder / name for name in but}
    return {
        str(path.relative_to(folder.parent)): path.stat().st_size
        for path in files
        if path not in left_out
    }


def are_whole(parent: pathlib.Path, sizes: Mapping[str, int]) -> bool:
    """Returns whether files of these sizes lie there; False where none was noted."""
    files = {parent / name: size for name, size in sizes.items()}
    return bool(files) and all(f.is_file() and f.stat().st_size == n for f, n in files.items())
