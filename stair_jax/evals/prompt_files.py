"""Prompt templates in files: official ones by their hashes, ours, and how either is filled.

Official prompts are sentences of others, so the project does not carry them. A user who has them as
files names the folder, and the hash of a file says that it is the very one.
"""

import hashlib
import pathlib
import re
from collections.abc import Mapping


def own(folder: pathlib.Path, name: str) -> str:
    """Returns one of our own templates, NAME.txt of a folder of the package."""
    return (folder / f"{name}.txt").read_text(encoding="utf-8").strip()


def official(folder: pathlib.Path, name: str, sha256: str) -> str:
    """Returns the official prompt NAME.txt of the user's folder.

    Raises:
      ValueError: where the file cannot be read or has another hash, naming it and both hashes.
    """
    path = folder / f"{name}.txt"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(
            f"{path} cannot be read: {error}; expected sha256 {sha256} of the official"
        ) from None
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise ValueError(f"{path}: found sha256 {found}, expected {sha256} of the official")
    return data.decode()


def fill(template: str, values: Mapping[str, str]) -> str:
    """Returns a template with each {name} of `values` replaced.

    Other braces stay as they are, and what a value holds is never a placeholder.
    """
    names = "|".join(map(re.escape, values))
    return re.sub(rf"\{{({names})\}}", lambda match: values[match[1]], template)
