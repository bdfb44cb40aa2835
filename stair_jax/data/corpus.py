"""A corpus: where the rows of a data set lie, under which licence, and how one becomes a seed.

A new one is a file in `corpora/` with a `CORPUS`. `registered` finds it, and recipes and
`config.data.corpora` can name it.
"""

import dataclasses
import functools
import importlib
import itertools
import pathlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from stair_jax.data import corpora, seeds, sources
from stair_jax.data.seeds import Convert, Fields, Loaded, Unusable


class Split(NamedTuple):
    """Rows of one split.

    Attributes:
      files: patterns of paths below `config.data.root`, in the layout of the authors.
      hub: name of the split on the Hugging Face hub; "": not there.
    """

    files: tuple[str, ...]
    hub: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Corpus:
    """A data set.

    Attributes:
      name: in settings and ids.
      title: as its authors call it.
      licence: of its rows, as its authors state it.
      train: the rows that become seeds.
      hub: its name on the Hugging Face hub; "": it is not there.
      subset: its part on the hub, where it has several.
      held_out: rows that no seed may ask, in the corpora whose splits share prompts.
      prompt_column: of these rows.
      benchmarks: registered ones that ask these very rows: whoever trains on it cannot report them.
      convert: makes a seed of a row, with its own id or "".
      by_columns: instead makes `convert` of `config.data.columns`.
      packaged: a file of this package that the rows are in, for rows of our own.
      asked: whether its seeds are prompts; others, such as templates, overlap with no benchmark.
    """

    name: str
    title: str
    licence: str
    train: Split
    hub: str = ""
    subset: str | None = None
    held_out: Split | None = None
    prompt_column: str = ""
    benchmarks: tuple[str, ...] = ()
    convert: Convert | None = None
    by_columns: Callable[[Mapping[str, str]], Convert] | None = None
    packaged: str = ""
    asked: bool = True


@functools.cache
def registered() -> dict[str, Corpus]:
    """Returns the corpora that settings can name, in the order of their files."""
    names = [found.name for found in pkgutil.iter_modules(corpora.__path__)]
    modules = [importlib.import_module(f"{corpora.__name__}.{name}") for name in names]
    return {module.CORPUS.name: module.CORPUS for module in modules}


class Place(NamedTuple):
    """Where a corpus is read: files here, or the hub where there are none."""

    corpus: Corpus
    files: tuple[str, ...]
    held_out: tuple[str, ...] = ()


def find(corpus: Corpus, root: str, given: str = "") -> Place:
    """Returns where a corpus lies: at the given place, else below the root, else on the hub.

    Args:
      corpus: that is looked for.
      root: `config.data.root`; "" for none.
      given: a file, or a name on the hub, that the user names for it.

    Raises:
      ValueError: where it lies nowhere.
    """
    if given:
        return Place(corpus, (given,))
    if corpus.packaged:
        return Place(corpus, (corpus.packaged,))
    if root and (files := _matching(root, corpus.train)):
        held_out = _matching(root, corpus.held_out) if corpus.held_out else ()
        return Place(corpus, files, held_out)
    if corpus.hub:
        return Place(corpus, ())
    below = f"; nothing below {root} is {' or '.join(corpus.train.files)}" if root else ""
    raise ValueError(
        f"config.data.corpora: {corpus.name} is on no hub{below}; name its file, as in"
        f" {corpus.name}:FILE"
    )


def _matching(root: str, split: Split) -> tuple[str, ...]:
    found = (sorted(pathlib.Path(root).glob(pattern)) for pattern in split.files)
    return tuple(str(path) for path in itertools.chain(*found))


def load(place: Place, columns: Mapping[str, str] | None = None) -> Loaded:
    """Reads a corpus.

    Args:
      place: as `find` returns it.
      columns: of a corpus that is read by the names of its columns.

    Raises:
      ValueError: for what cannot be read, naming file, row and column.
    """
    corpus = place.corpus
    convert = corpus.convert or (corpus.by_columns and corpus.by_columns(columns or {}))
    assert convert, corpus.name
    held_out = frozenset(_asked(corpus, place))
    rows = _rows(corpus, corpus.train, place.files)
    return seeds.load(rows, convert, corpus.name, held_out=held_out)


def _rows(corpus: Corpus, split: Split, files: Sequence[str]) -> Iterator[sources.Located]:
    if files:
        return itertools.chain.from_iterable(sources.stream(file) for file in files)
    return sources.stream(corpus.hub, split.hub, corpus.subset)


def _asked(corpus: Corpus, place: Place) -> Iterator[str]:
    """Yields `seeds.key_of` the held-out prompts, also of rows that make no seed."""
    on_hub = not place.files
    if corpus.held_out is None or not (place.held_out or on_hub):
        return
    for where, row in _rows(corpus, corpus.held_out, place.held_out):
        try:
            yield seeds.key_of(Fields(where, row).text(corpus.prompt_column))
        except Unusable:
            continue  # nothing is asked there
