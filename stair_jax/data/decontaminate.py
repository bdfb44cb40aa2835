"""Texts of training data that overlap with prompts of benchmarks.

Texts are compared as words: Unicode NFKC, case folded, without punctuation, apostrophes and
invisible characters. A text is removed by the first of these that holds:

- "exact": it has the words of a prompt.
- "contained": a whole prompt that has no n-gram of its own, most often one of fewer than n words,
  stands in it. Prompts of fewer than `LEAST` words are not looked for: "what is fraud" stands in
  many questions that are not XSTest's.
- "ngram": it shares n words in a row with a prompt (Brown et al. 2020, arXiv 2005.14165, appendix
  C, with n = 13).
- "near": the Jaccard similarity of its words and pairs of neighbouring words with a prompt's is at
  least `near`. Candidates come from MinHash LSH, and each is verified.

Boilerplate does not count. It is the n-grams that at least `BOILERPLATE` distinct prompts of one
benchmark share, or half of the prompts of a benchmark with fewer than twice as many: instructions,
few-shot examples, jailbreak templates. A word that such an n-gram covers is no part of an n-gram
or of a similarity of that benchmark's. Else a row in the same template would be removed for "Think
step by step" or for the end of the template before a word of its own. The limit was chosen by
counts over 39 benchmarks and samples read: what 20 or more prompts share is mostly instructions and
templates; what 2 to 9 share is mostly passages, contexts and goals, which are content. In between
lie conversations of HHH that up to 34 of its 433 prompts go on from, which count as boilerplate.
A row that holds one with the prompt's own words behind it is still removed.

Single words alone would call "In what year was the municipality of X founded?" a copy of the same
question about Y: 1,174 pairs of different short prompts, most of SimpleQA, reach 0.8 by words, 139
by pairs and 187 by both. Both find more copies with one word in twenty replaced than pairs do. They
lose copies with one in ten replaced, unless n words in a row are left; a lower `near` finds them,
and other questions in the same words. Of prompts with fewer than `LEAST` words of their own between
boilerplate, as DecodingTrust's, only whole ones are found. Languages that put no space between
words are compared by what stands between punctuation: of their overlaps, too, only whole ones are.
"""

import collections
import dataclasses
import re
import unicodedata
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, cast

import datasketch

BOILERPLATE = 10  # prompts of a benchmark that share an n-gram, from which on it is a template
FEWEST = 3  # the same, of a benchmark of a few prompts
LEAST = 5  # words of a prompt that is looked for within a text, or for near copies
PERMUTATIONS = 128  # of a MinHash
MISSED = 0.01  # chance that LSH misses a copy that is exactly as near as asked

_WORD = re.compile(r"[^\W_]+")
_SILENT = re.compile("['\u2018\u2019`\u00b4\u02bc\u00ad\u200b-\u200f\u2060\ufeff]")

Words = tuple[str, ...]
Runs = list[Words]  # what boilerplate leaves of a text


class Hit(NamedTuple):
    """Why a text is removed.

    Attributes:
      benchmark: the name it has in `against`.
      prompt: of that benchmark, as it was given.
      how: "exact", "contained", "ngram" or "near".
    """

    benchmark: str
    prompt: str
    how: str


@dataclasses.dataclass(frozen=True)
class Found:
    """Texts that overlap with benchmarks.

    Attributes:
      removed: by the text's key, in the order of the texts.
    """

    removed: Mapping[str, Hit]

    @property
    def counts(self) -> dict[tuple[str, str], int]:
        """How many texts were removed, by benchmark and `Hit.how`."""
        return dict(collections.Counter((hit.benchmark, hit.how) for hit in self.removed.values()))


class _Entry(NamedTuple):
    benchmark: str
    prompt: str
    words: Words
    shingles: frozenset[str]


def remove(
    texts: Mapping[str, str],
    against: Mapping[str, Sequence[str]],
    *,
    n: int = 13,
    near: float = 0.8,
) -> Found:
    """Returns which texts overlap with prompts of benchmarks.

    Args:
      texts: by any key.
      against: prompts by the benchmark's name; of a conversation, all its turns in one text.
      n: words in a row that a text may not share with a prompt.
      near: Jaccard similarity, in (0, 1], from which on a text is a near copy.

    Raises:
      ValueError: where a number is out of range, a benchmark has no prompts, or something is no
        text.
    """
    index = PromptIndex(against, n=n, near=near)
    hits = ((key, index.hit(text, f"texts: {key!r}")) for key, text in texts.items())
    return Found({key: hit for key, hit in hits if hit})


class PromptIndex:
    """Prompts of benchmarks, to which texts are compared one by one; `remove` says how."""

    def __init__(
        self, against: Mapping[str, Sequence[str]], *, n: int = 13, near: float = 0.8
    ) -> None:
        _check(against, n, near)
        self._n, self._near = n, near
        self._entries: list[_Entry] = []
        self._exact: dict[Words, int] = {}
        self._whole: dict[str, list[int]] = {}  # by their first words
        self._grams: dict[str, int] = {}
        self._boilerplate = {}
        self._lsh = datasketch.MinHashLSH(num_perm=PERMUTATIONS, params=_bands(near))
        self._empty = datasketch.MinHash(PERMUTATIONS, hashfunc=zlib.crc32)
        for benchmark, prompts in against.items():
            distinct = {}
            for number, prompt in enumerate(prompts):
                distinct.setdefault(words_of(prompt, f"{benchmark}: prompt {number}"), prompt)
            distinct.pop((), None)  # nothing but punctuation
            self._boilerplate[benchmark] = boilerplate_of(list(distinct), n)
            for words, prompt in distinct.items():
                self._add(benchmark, prompt, words)

    def _add(self, benchmark: str, prompt: str, words: Words) -> None:
        own = _runs(words, self._n, self._boilerplate[benchmark])
        number = len(self._entries)
        shingles = _shingles(own)
        self._entries.append(_Entry(benchmark, prompt, words, shingles))
        self._exact.setdefault(words, number)
        grams = [gram for run in own for gram in _grams(run, self._n)]
        for gram in grams:
            self._grams.setdefault(gram, number)
        if not grams and len(words) >= LEAST:
            self._whole.setdefault(" ".join(words[:LEAST]), []).append(number)
        if sum(map(len, own)) >= LEAST:
            self._lsh.insert(number, self._minhash(shingles), check_duplication=False)

    def hit(self, text: str, where: str = "text") -> Hit | None:
        """Returns why a text is to be removed; None where it overlaps with no prompt.

        Args:
          text: of a row of training data.
          where: what it is called in errors.

        Raises:
          ValueError: where it is no text.
        """
        words = words_of(text, where)
        if words in self._exact:
            return self._told(self._exact[words], "exact")
        for number in self._beginning(words):
            if _stands_in(self._entries[number].words, words):
                return self._told(number, "contained")
        grams = list(_grams(words, self._n))
        for gram in grams:
            if gram in self._grams:
                return self._told(self._grams[gram], "ngram")
        nearest = self._nearest(words, grams)
        return None if nearest is None else self._told(nearest, "near")

    def _told(self, number: int, how: str) -> Hit:
        entry = self._entries[number]
        return Hit(entry.benchmark, entry.prompt, how)

    def _beginning(self, words: Words) -> Iterator[int]:
        for first in _grams(words, LEAST):
            yield from self._whole.get(first, ())

    def _nearest(self, words: Words, grams: Sequence[str]) -> int | None:
        """Returns the prompt that is most like a text, if that is near."""
        shingles = _shingles([words])
        by_benchmark = {
            name: _shingles(_runs(words, self._n, known))
            for name, known in self._boilerplate.items()
            if not known.isdisjoint(grams)
        }
        candidates = {
            number
            for some in {shingles, *by_benchmark.values()}
            if some
            for number in cast("list[int]", self._lsh.query(self._minhash(some)))
        }
        best, likeness = None, self._near
        for number in sorted(candidates):
            entry = self._entries[number]
            found = _jaccard(entry.shingles, by_benchmark.get(entry.benchmark, shingles))
            if found > likeness or (best is None and found == likeness):
                best, likeness = number, found
        return best

    def _minhash(self, shingles: frozenset[str]) -> datasketch.MinHash:
        minhash = self._empty.copy()
        minhash.update_batch([shingle.encode() for shingle in shingles])
        return minhash


def words_of(text: object, where: str = "text") -> Words:
    """Returns what is compared of a text: its words without case, punctuation and apostrophes.

    Raises:
      ValueError: where it is no text, naming `where` it stands.
    """
    if not isinstance(text, str):
        raise ValueError(f"{where}: found {type(text).__name__}, expected a text")
    plain = _SILENT.sub("", unicodedata.normalize("NFKC", text).casefold())
    return tuple(_WORD.findall(plain))


def boilerplate_of(prompts: Sequence[Words], n: int) -> set[str]:
    """Returns the n-grams that too many prompts of one benchmark share to be of any.

    Args:
      prompts: distinct ones, as `words_of` returns them.
      n: words of an n-gram.
    """
    limit = max(FEWEST, min(BOILERPLATE, len(prompts) // 2))
    prompts_with = collections.Counter(gram for words in prompts for gram in {*_grams(words, n)})
    return {gram for gram, count in prompts_with.items() if count >= limit}


def _check(against: Mapping[str, Sequence[str]], n: int, near: float) -> None:
    if n < LEAST:
        raise ValueError(f"n: found {n}, expected at least {LEAST} words")
    if not 0 < near <= 1:
        raise ValueError(f"near: found {near}, expected a similarity in (0, 1]")
    for benchmark, prompts in against.items():
        if isinstance(prompts, str) or not len(prompts):
            found = "one text" if isinstance(prompts, str) else "none"
            raise ValueError(f"against: {benchmark!r}: found {found}, expected a list of prompts")


def _grams(words: Words, n: int) -> Iterator[str]:
    return map(" ".join, zip(*(words[start:] for start in range(n)), strict=False))


def _runs(words: Words, n: int, boilerplate: set[str]) -> Runs:
    """Returns the words that no n-gram of boilerplate covers, a tuple for those in a row."""
    starts = [at for at, gram in enumerate(_grams(words, n)) if gram in boilerplate]
    runs, end = [], 0
    for start in [*starts, len(words)]:
        if start > end:
            runs.append(words[end:start])
        end = start + n
    return runs


def _shingles(runs: Runs) -> frozenset[str]:
    return frozenset(gram for run in runs for size in (1, 2) for gram in _grams(run, size))


def _jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    shared = len(a & b)
    return shared / (len(a) + len(b) - shared)


def _stands_in(part: Words, words: Words) -> bool:
    return f" {' '.join(part)} " in f" {' '.join(words)} "


def _bands(near: float) -> tuple[int, int]:
    """Returns how many bands of LSH there are, and how many permutations each of them has.

    Bands are as long as they can be for copies at the limit to be missed that seldom: the longer,
    the fewer candidates. Source: Leskovec, Rajaraman, Ullman, Mining of Massive Datasets, 3.4.2.
    """
    rows = 1
    while (
        rows < PERMUTATIONS and (1 - near ** (rows + 1)) ** (PERMUTATIONS // (rows + 1)) <= MISSED
    ):
        rows += 1
    return PERMUTATIONS // rows, rows
