"""The model cards of a run's exports: when they are written, and when they are left alone.

A card is written with its export. Stage evaluate, which may come later, brings the cards of the
exports that are there up to date. One that was edited by hand is never touched.
"""

import logging
import pathlib

from stair_jax import jsonl
from stair_jax.config.stages import EXPORT, stage_of
from stair_jax.hf import card
from stair_jax.run import card_facts, known_models
from stair_jax.run.known_models import REWARD_MODEL, Model
from stair_jax.run.workdir import Run

log = logging.getLogger(__name__)


def text_for(run: Run, model: Model, folder: pathlib.Path) -> str:
    """Returns the card of an export: a fresh one, or the one that somebody has edited there."""
    file = folder / card.FILE
    there = file.read_text(encoding="utf-8") if file.is_file() else ""
    if there and not card.is_sealed(there):
        log.info("%s: edited by hand, left as it is; delete it for a new one", file)
        return there
    return card.write(card_facts.of(run, model))


def update(run: Run, model: Model, folder: pathlib.Path) -> None:
    """Writes the card of an export that is there, where it has changed."""
    file, text = folder / card.FILE, text_for(run, model, folder)
    if not file.is_file() or file.read_text(encoding="utf-8") != text:
        jsonl.write_text(file, text)
        log.info("%s: written", file)


def update_all(run: Run) -> None:
    """Writes the cards of all exports that are there, where they have changed."""
    for artefact, entry in run.lineage.entries.items():
        folder = run.workdir / artefact
        if stage_of(entry["stage"]) == EXPORT.name and entry["finished"] and folder.is_dir():
            name = artefact.removeprefix(f"{EXPORT.name}/")
            known = {REWARD_MODEL.name: REWARD_MODEL}
            update(run, known.get(name) or known_models.of_name(run, name), folder)
