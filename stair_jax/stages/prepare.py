"""Stage prepare: corpora in, the sets that other stages train and search on out.

All of them lie in the folder `data` of the workdir, with a manifest, a card for people, what was
dropped and what was removed because a benchmark asks it. Everything but what models say is made
anew after a stop: a teacher's replies and a model's own responses are kept one by one.
"""

import json
import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from stair_jax import jsonl
from stair_jax.config.stages import PREPARE
from stair_jax.data import set_card, set_rows
from stair_jax.data.corpora import columns
from stair_jax.data.set_rows import Rows
from stair_jax.run import contamination, hashes, models, prepared, preparing, teacher
from stair_jax.run.preparing import Made
from stair_jax.run.workdir import Run

log = logging.getLogger(__name__)

FILES = (prepared.SFT, prepared.PREFERENCES, prepared.PROMPTS)
DROPPED, REMOVED, MANIFEST, CARD = "dropped.jsonl", "removed.jsonl", "manifest.json", "card.md"
SHOWN, SHOWN_CHARACTERS = 3, 240


def look(run: Run) -> None:
    """Refuses names of recipes, corpora, columns and benchmarks that there are not."""
    if run.lineage.finished(prepared.NAME):
        return
    recipe = preparing.recipe_of(run.config)
    preparing.places_of(run.config, recipe)
    if columns.CORPUS.name in recipe.corpora:
        columns.convert(preparing.columns_of(run.config))
    contamination.check(run.config)
    teacher.look(run)


def run(run: Run) -> None:
    """Makes the sets of `config.data.recipe`."""
    name = prepared.NAME
    found = preparing.read(run.config)
    inputs = preparing.inputs_of(found)
    if run.lineage.binds(name):  # before a teacher is paid
        run.lineage.check_inputs(name, inputs)
    made = preparing.taught(run, preparing.make(run.config, found))
    parents = (teacher.NAME,) if made.taught else ()
    run.begin(name, PREPARE.name, parents, inputs)
    made = preparing.sampled(run, name, made)
    sets = set_rows.of_sets(made.sets, FILES)
    if not sets:
        raise ValueError(f"config.data.recipe: {found.recipe.name!r} made no row at all")
    folder = run.workdir / name
    for file, rows in sets.items():
        _write(folder / file, rows)
    _write(folder / DROPPED, preparing.dropped_rows(found, made))
    _write(folder / REMOVED, [one._asdict() for one in made.removed])
    paths = [folder / file for file in sets]
    digests = {path.name: hashes.of_file(path) for path in paths}
    manifest = preparing.manifest_of(run.config, found, made, _facts(run, made), digests)
    jsonl.write_json(folder / MANIFEST, manifest)
    card = set_card.page(manifest)
    jsonl.write_text(folder / CARD, card)
    print(f"{card}\n{_some(sets)}")
    counts = {file: len(rows) for file, rows in sets.items()}
    run.metrics.rewind(name, -1)
    run.metrics.log(name, 0, {**counts, "removed": len(made.removed)})
    run.lineage.finish(name, hashes.of_text(json.dumps(digests)), paths, rows=counts)


def _write(path: pathlib.Path, rows: Rows) -> None:
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    jsonl.write_text(path, "".join(lines))


def _facts(run: Run, made: Made) -> dict[str, Any]:
    """Returns what is in each set, by file."""
    tokenizer = models.spec_and_codec(run)[1].tokenizer

    def tokens(texts: Sequence[str]) -> list[int]:
        return [len(ids) for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]]

    files = {"sft": prepared.SFT, "preferences": prepared.PREFERENCES}
    return {
        files.get(kind, prepared.PROMPTS.replace("{round}", kind)): set_card.facts(
            seeds, texts, tokens
        )
        for kind, (seeds, texts) in preparing.texts_of(made.sets).items()
        if seeds
    }


def _some(sets: Mapping[str, Rows]) -> str:
    """Returns the first rows of the first set, their texts shortened."""
    file, rows = next(iter(sets.items()))
    lines = [f"The first rows of {file}:"]
    for row in rows[:SHOWN]:
        lines.append("")
        for key, value in row.items():
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            cut = " ..." if len(text) > SHOWN_CHARACTERS else ""
            lines.append(f"  {key}: {text[:SHOWN_CHARACTERS]!r}{cut}")
    return "\n".join(lines)
