"""What a run will read from outside, looked at before its first stage."""

import logging
import pathlib
from collections.abc import Collection, Iterable, Sequence

from stair_jax import text
from stair_jax.config import Config, default
from stair_jax.config.strategies import parse_all
from stair_jax.config.words import split_csv
from stair_jax.data import sources
from stair_jax.hf import importer, metadata, reward_model
from stair_jax.run import benchmarks, hashes, judges, models
from stair_jax.run import rows as rows_lib
from stair_jax.run.workdir import Run
from stair_jax.search.node_values import FROM_MODEL

log = logging.getLogger(__name__)

Work = tuple[str, int | None]  # a stage, and its round where it belongs to one


def of_rows(rows: Iterable[object]) -> str:
    """Returns a hash of what rows say; their order counts as far as their ids tell it."""
    return hashes.of_text("\n".join(sorted(map(repr, rows))))


def look(run: Run, work: Sequence[Work]) -> None:
    """Reads what the stages will read from outside, so that a mistake costs no stage.

    Whatever is finished is held against the rows that it was made from, where these lie in files.

    Raises:
      ValueError: as the stage itself would, or for rows that have changed, by name.
    """
    _look_at_checkpoint(run)
    _refuse_idle_rates(run, {stage for stage, _ in work} & {"sft", "dpo", "prm"})
    parse_all(split_csv(run.config.evaluate.search))
    for stage, number in work:
        _look_at(run, stage, number)


def _refuse_idle_rates(run: Run, stages: Collection[str]) -> None:
    """Refuses a rate for the rows of new tags where the checkpoint has none."""
    usual = default()
    for stage in stages:
        rate = run.config[stage].train.new_rows_lr
        if rate != usual[stage].train.new_rows_lr and not models.new_rows(run):
            raise ValueError(
                f"config.{stage}.train.new_rows_lr: {rate} would be ignored,"
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


def _look_at(run: Run, stage: str, number: int | None) -> None:
    c, data = run.config, run.config.data
    if stage == "sft" and _wanted(run, "sft", data.sft):
        _hold(run, "sft", "data.sft", of_rows(rows_lib.for_sft(c)))
    elif stage == "search" and number is not None:
        name = f"round-{number}/trees"
        judges.facts(c)
        for path in _reward_models(c):
            reward_model.look(path)
        if _wanted(run, name, data.prompts.replace("{round}", str(number))):
            _hold(run, name, "data.prompts", of_rows(rows_lib.for_round(c, number)))
    elif stage == "prm" and not run.lineage.finished("prm"):
        if c.prm.prompts:
            rows_lib.for_prm(c)
    elif stage == "evaluate":
        if any(benchmark.sides for benchmark in benchmarks.of(c)):
            judges.facts(c)
    elif stage == "baselines" and sources.is_file(data.preferences):
        rows_lib.for_preferences(c)


def _reward_models(c: Config) -> list[str]:
    """Returns the checkpoints that a search asks for rewards and values."""
    judge = [c.judge.reward_model] if c.judge.helpfulness == "reward_model" else []
    return judge + ([c.search.value_model] if c.search.value in FROM_MODEL else [])


def _wanted(run: Run, name: str, source: str) -> bool:
    """Returns whether rows are worth reading: they are needed still, or lie in a file here."""
    return not run.lineage.finished(name) or pathlib.Path(source).is_file()


def _hold(run: Run, name: str, key: str, digest: str) -> None:
    if run.lineage.finished(name):
        run.lineage.check_inputs(name, {key: digest})
