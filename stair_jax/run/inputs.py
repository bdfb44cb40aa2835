"""What a run will read from outside, looked at before its first stage."""

import logging
import pathlib
from collections.abc import Callable, Iterable

from stair_jax import text
from stair_jax.config import default
from stair_jax.config.stages import TRAINERS, Stage
from stair_jax.config.strategies import parse_all
from stair_jax.config.words import split_csv
from stair_jax.hf import importer, metadata
from stair_jax.run import hashes, models
from stair_jax.run.workdir import Run

log = logging.getLogger(__name__)


def of_rows(rows: Iterable[object]) -> str:
    """Returns a hash of what rows say; their order counts as far as their ids tell it."""
    return hashes.of_text("\n".join(sorted(map(repr, rows))))


def look(run: Run, stages: Iterable[Stage]) -> None:
    """Reads of the model and the settings what no stage reads alone, so that a mistake costs none.

    Raises:
      ValueError: as a stage itself would.
    """
    _look_at_checkpoint(run)
    _refuse_idle_rates(run, [stage.name for stage in stages if stage.name in TRAINERS])
    parse_all(split_csv(run.config.evaluate.search))


def hold(
    run: Run, artefact: str, key: str, source: str, read: Callable[[], Iterable[object]]
) -> None:
    """Reads the rows of an artefact where they are needed still, or lie in a file here.

    If the artefact is finished, they are compared with the rows that it was made from.

    Args:
      run: the run.
      artefact: that is made from the rows.
      key: of the setting that names them.
      source: what that setting says.
      read: reads them.

    Raises:
      ValueError: as `read`, or for rows that have changed, by name.
    """
    finished = run.lineage.finished(artefact)
    if finished and not pathlib.Path(source).is_file():
        return
    digest = of_rows(read())
    if finished:
        run.lineage.check_inputs(artefact, {key: digest})


def _refuse_idle_rates(run: Run, sections: Iterable[str]) -> None:
    """Refuses a rate for the rows of new tags where the checkpoint has none."""
    usual = default()
    for section in sections:
        rate = run.config[section].train.new_rows_lr
        if rate != usual[section].train.new_rows_lr and not models.new_rows(run):
            raise ValueError(
                f"config.{section}.train.new_rows_lr: {rate} would be ignored,"
                f" {run.config.model.checkpoint} knows all tags"
            )


def _look_at_checkpoint(run: Run) -> None:
    """Reads all of the model but the values of its weights, and says what of it is not used."""
    _, codec = models.spec_and_codec(run)
    if not (path := run.origin.model.checkpoint):
        return
    spec, _ = importer.look(path)
    for name in metadata.names_code(path):
        log.warning("%s: auto_map of %s names Python of its own, which never runs", path, name)
    for word in codec.tokenizer.convert_ids_to_tokens(sorted(metadata.ends_of(path, spec))):
        if word not in codec.specials:
            log.warning("%s: eos_token_id ends a response at %r, an ordinary token", path, word)
    if not codec.system and (own := text.own_system(codec.tokenizer)):
        log.warning(
            "%s: its own chat template puts a system turn first, %r, which is left out; to train"
            " and export with it, set --config.model.system",
            path,
            own,
        )
