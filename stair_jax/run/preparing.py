"""Making the sets of a recipe: corpora read, compared with benchmarks, and drawn from."""

import collections
import dataclasses
import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from stair_jax.config import Config
from stair_jax.config.schema import RecipeConfig
from stair_jax.config.words import split_csv
from stair_jax.data import corpus as corpus_lib
from stair_jax.data import recipe as recipe_lib
from stair_jax.data.corpus import Place
from stair_jax.data.recipe import Pools, Recipe, Sets
from stair_jax.data.seeds import Loaded, Seed
from stair_jax.data.teaching import refusals
from stair_jax.run import contamination, rejected, teacher
from stair_jax.run.contamination import Against, Removed
from stair_jax.run.teacher import Taught
from stair_jax.run.workdir import Run

log = logging.getLogger(__name__)

_MOST_REFUSALS = 10  # wordings that the manifest has, the most frequent


@dataclasses.dataclass(frozen=True)
class Read:
    """What a recipe's sets will be made from."""

    recipe: Recipe
    places: list[Place]
    loaded: dict[str, Loaded]  # by corpus
    against: Against


@dataclasses.dataclass(frozen=True)
class Made:
    """The sets, and what went on the way to them."""

    sets: Sets
    removed: list[Removed]
    not_sampled: dict[str, str] = dataclasses.field(default_factory=dict)  # reasons by id
    taught: Taught | None = None  # by a teacher, if one was asked


def recipe_of(config: Config) -> Recipe:
    """Returns the recipe that `config.data.recipe` names.

    Raises:
      ValueError: where there is none of that name.
    """
    known = recipe_lib.registered()
    if config.data.recipe not in known:
        raise ValueError(f"config.data.recipe: {config.data.recipe!r} is not one of {list(known)}")
    return known[config.data.recipe]


def places_of(config: Config, recipe: Recipe) -> list[Place]:
    """Returns where the corpora of a recipe lie.

    Raises:
      ValueError: for a name in `config.data.corpora` that the recipe does not read, or for a corpus
        that lies nowhere and that the recipe cannot do without.
    """
    readable = (*recipe.corpora, *recipe.optional)
    given: dict[str, str] = {}
    for word in split_csv(config.data.corpora):
        name, _, place = word.partition(":")
        if name not in readable or not place:
            raise ValueError(
                f"config.data.corpora: {word!r}, expected NAME:FILE with a NAME of"
                f" {list(readable)}, which the recipe {recipe.name!r} reads"
            )
        given[name] = place
    known = corpus_lib.registered()
    found = []
    for name in readable:
        try:
            found.append(corpus_lib.find(known[name], config.data.root, given.get(name, "")))
        except ValueError:
            if name in recipe.corpora:
                raise
            log.warning("config.data.recipe: %s goes without %s", recipe.name, known[name].title)
    return found


def columns_of(config: Config) -> dict[str, str]:
    """Returns `config.data.columns` by part.

    Raises:
      ValueError: for a word that is no PART=COLUMN.
    """
    found: dict[str, str] = {}
    for word in split_csv(config.data.columns):
        part, _, column = word.partition("=")
        if not part or not column:
            raise ValueError(f"config.data.columns: {word!r}, expected PART=COLUMN")
        found[part] = column
    return found


def read(config: Config) -> Read:
    """Reads the corpora, and the prompts of benchmarks.

    Raises:
      ValueError: for what cannot be read, naming file, row and column.
    """
    recipe = recipe_of(config)
    places, columns = places_of(config, recipe), columns_of(config)
    loaded = {place.corpus.name: corpus_lib.load(place, columns) for place in places}
    trained_on = {name for place in places for name in place.corpus.benchmarks}
    return Read(recipe, places, loaded, contamination.prompts_of(config, trained_on))


def inputs_of(found: Read) -> dict[str, str]:
    """Returns hashes of what was read, by the settings that name it."""
    return {
        "data.corpora": _digest(repr(seed) for one in found.loaded.values() for seed in one.seeds),
        "data.decontaminate": _digest(map(repr, found.against.prompts.items())),
    }


def _digest(texts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode() + b"\n")
    return digest.hexdigest()[:32]


def make(config: Config, found: Read) -> Made:
    """Makes the sets, but for what models say.

    Raises:
      ValueError: where there are fewer seeds than are wanted.
    """
    seeds = {name: one.seeds for name, one in found.loaded.items()}
    prompts = {place.corpus.name for place in found.places if place.corpus.asked}
    compared = {name: some for name, some in seeds.items() if name in prompts}
    removed = contamination.removed(compared, found.against.prompts)
    gone = {one.id for one in removed}
    clean = {name: [seed for seed in some if seed.id not in gone] for name, some in seeds.items()}
    sizes = RecipeConfig.of(config.recipe)
    return Made(found.recipe.make(Pools(clean, sizes, config.seed, refusals.refusal)), removed)


def taught(run: Run, made: Made) -> Made:
    """Returns what was made with demonstrations of a teacher, if the run has one.

    Raises:
      ValueError: where there is no prompt for it, and as `teacher.answer`.
    """
    c = run.config
    if not c.recipe.teacher:
        return made
    if not (asked := made.sets.prompts.get(recipe_lib.COT)):
        raise ValueError(f"config.recipe.teacher: {c.data.recipe!r} made no prompt for it")
    found = teacher.answer(run, asked)
    every = [*made.sets.demonstrations, *found.seeds]
    mixed = recipe_lib.in_drawn_order(every, c.seed, "mixed")
    sets = dataclasses.replace(made.sets, demonstrations=mixed)
    return dataclasses.replace(made, sets=sets, taught=found)


def sampled(run: Run, artefact: str, made: Made) -> Made:
    """Returns what was made with rejected responses sampled from the model where they are missing.

    Args:
      run: that has begun the artefact.
      artefact: that the sets are.
      made: so far.
    """
    sets = made.sets
    if not (open_ := [seed for seed in sets.preferences if not seed.rejected]):
        return made
    answers, missing = rejected.sample(run, artefact, open_)
    whole = [
        dataclasses.replace(seed, rejected=seed.rejected or answers[seed.id])
        for seed in sets.preferences
        if seed.rejected or seed.id in answers
    ]
    sets = dataclasses.replace(sets, preferences=whole)
    return dataclasses.replace(made, sets=sets, not_sampled=missing)


def manifest_of(
    config: Config, found: Read, made: Made, sets: Mapping[str, Any], hashes: Mapping[str, str]
) -> dict[str, Any]:
    """Returns all that is known of the sets, as JSON.

    Args:
      config: of the run.
      found: what they were made from.
      made: the sets.
      sets: facts of each, by file.
      hashes: of the files.
    """
    by_benchmark = collections.Counter((x.source, x.benchmark, x.how) for x in made.removed)
    return {
        "recipe": found.recipe.name,
        "seed": config.seed,
        "sizes": json.loads(config.recipe.to_json()),
        "sets": {name: {**one, "hash": hashes[name]} for name, one in sets.items()},
        "corpora": {place.corpus.name: _of_corpus(place, found) for place in found.places},
        "benchmarks": {name: len(prompts) for name, prompts in found.against.prompts.items()},
        "corpora_absent": [name for name in found.recipe.optional if name not in found.loaded],
        "benchmarks_absent": found.against.absent,
        "removed": [
            {"source": source, "benchmark": benchmark, "how": how, "rows": count}
            for (source, benchmark, how), count in sorted(by_benchmark.items())
        ],
        "not_sampled": dict(sorted(collections.Counter(made.not_sampled.values()).items())),
        "taught": _of_teacher(made.taught) if made.taught else None,
    }


def _of_teacher(taught: Taught) -> dict[str, Any]:
    report = taught.report
    refusals = {
        "rows": sum(report.refusals.values()),
        "wordings": len(report.refusals),
        "most": dict(list(report.refusals.items())[:_MOST_REFUSALS]),
    }
    return {
        "teacher": taught.teacher,
        "prompts": report.prompts,
        "kept": report.kept,
        "attempts": report.attempts,
        "dropped": _counts(report.dropped),
        "refusals": refusals,
        "characters": report.characters,
        "steps": report.steps,
    }


def _of_corpus(place: Place, found: Read) -> dict[str, Any]:
    one, corpus = found.loaded[place.corpus.name], place.corpus
    return {
        "title": corpus.title,
        "licence": corpus.licence,
        "from": list(place.files) or [f"{corpus.hub} {corpus.train.hub}"],
        "held_out": list(place.held_out),
        "usable": len(one.seeds),
        "dropped": _counts(one.dropped),
        "mended": _counts(one.mended),
    }


def _counts(ids: Mapping[str, Sequence[str]]) -> dict[str, int]:
    return {reason: len(some) for reason, some in sorted(ids.items())}


def dropped_rows(found: Read, made: Made) -> list[dict[str, Any]]:
    """Returns a row for each row of a corpus that made no seed, and each lost answer."""
    rows = [
        {"id": id, "corpus": name, "reason": reason}
        for name, one in found.loaded.items()
        for reason, ids in one.dropped.items()
        for id in ids
    ]
    sampled = [
        {"id": id, "corpus": "the model's responses", "reason": reason}
        for id, reason in made.not_sampled.items()
    ]
    untaught = [
        {"id": id, "corpus": "the teacher's replies", "reason": reason}
        for id, reason in (made.taught.dropped if made.taught else {}).items()
    ]
    return rows + sampled + untaught


def texts_of(sets: Sets) -> dict[str, tuple[list[Seed], tuple[str, ...]]]:
    """Returns the seeds of each kind of set, and which texts its rows have, by kind."""
    return {
        "sft": (sets.demonstrations, ("prompt", "response")),
        "preferences": (sets.preferences, ("prompt", "chosen", "rejected")),
        **{part: (seeds, ("prompt",)) for part, seeds in sets.prompts.items()},
    }
