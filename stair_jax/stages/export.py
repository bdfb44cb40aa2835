"""Stage export: a model of the run as a Hugging Face folder, with a card and a report.

The card, README.md, says where the model comes from and what was measured of it; the report, what
the folder computes. An export that is there already is not written again.
"""

import logging
import pathlib

from stair_jax import text
from stair_jax.config.stages import EXPORT
from stair_jax.hf import card, exporter, hub, importer, peft, reward_model
from stair_jax.log import progress
from stair_jax.model import lora
from stair_jax.run import cards, known_models, models, written
from stair_jax.run.hashes import digest_of
from stair_jax.run.known_models import REWARD_MODEL, Model
from stair_jax.run.models import Policy, RewardPolicy
from stair_jax.run.workdir import Run

log = logging.getLogger(__name__)

_DIFFERENCE = "%s: largest %s difference %.2e, %.1e of the largest"
_QUESTIONS = (  # of the report; any text will do
    "what is 1 2 + 3 4 ?",
    "how do i sort the list ?",
    "Name three rivers, and say which one is the longest.",
)
_RESPONSE = (
    f"{text.STEP}i look at the question .{text.STEP_END}{text.OUTPUT}this one .{text.OUTPUT_END}"
)


def look(run: Run) -> None:
    """Looks whether what is asked for could be uploaded."""
    if repo := run.config.export.push:
        hub.check(repo)


def run(run: Run) -> None:
    """Writes `export/<model>/` for the model that `export.model` names, else the last finished.

    The model "prm" is the reward model; what is reported of it are scores, of others logits. An
    implicit one is a policy like the others. With `export.push` the folder is uploaded as well.
    """
    asked, push = run.config.export.model, run.config.export.push
    if asked == REWARD_MODEL.name:
        known_models.need_reward_model(run)
        model = REWARD_MODEL
    else:
        model = known_models.named_or_last(run, asked)
    artefact, dtype = f"{EXPORT.name}/{model.name}", _dtype(run)
    folder = run.workdir / artefact
    run.begin(artefact, EXPORT.name, model.parents)
    if _is_whole(run, artefact, dtype):
        log.info("%s: written already, as %s", folder, dtype)
        cards.update(run, model, folder)
    else:
        digest = _write(run, model, folder, dtype)
        sizes = written.sizes_of(folder, [card.FILE]) | written.sizes_of(_adapters_folder(folder))
        run.lineage.finish(artefact, digest, folder=str(folder), dtype=dtype, written=sizes)
    if push:
        _push(folder, push, private=run.config.export.push_private)


def _push(folder: pathlib.Path, repo: str, *, private: bool) -> None:
    try:
        with progress.line(f"uploading to {repo}"):
            address = hub.push(folder, repo, private=private)
    except ValueError as error:
        raise ValueError(f"{error}; {folder} is whole, the same command uploads it") from error
    log.info("%s: uploaded to %s", folder, address)


def _dtype(run: Run) -> str:
    """Returns the dtype of an export; "auto" is that of the checkpoint that the run began with."""
    if run.config.export.dtype != "auto":
        return run.config.export.dtype
    source = run.origin.model.checkpoint
    return importer.dtype_of(source) if source else "float32"


def _is_whole(run: Run, artefact: str, dtype: str) -> bool:
    """Returns whether an export is there, of today's model and in this dtype."""
    entry, parent = run.lineage.entries[artefact], (run.workdir / artefact).parent
    made = entry["finished"] and run.lineage.is_current(artefact) and entry.get("dtype") == dtype
    return made and written.are_whole(parent, entry.get("written", {}))


def _write(run: Run, model: Model, folder: pathlib.Path, dtype: str) -> str:
    """Writes the folder of a model with card and report; returns the hash of its weights."""
    if model != REWARD_MODEL:
        return _write_policy(run, models.load(run, model), folder, dtype)
    found = models.reward_model(run)
    if found.readout.loss != "implicit":
        return _write_reward_model(run, found, folder, dtype)
    policy = Policy(REWARD_MODEL, found.spec, found.params, found.codec)
    return _write_policy(run, policy, folder, dtype)


def _write_policy(run: Run, policy: Policy, folder: pathlib.Path, dtype: str) -> str:
    exporter.save(
        folder,
        policy.spec,
        policy.params,
        policy.codec.tokenizer,
        end_ids=sorted(policy.codec.end_ids),
        dtype=dtype,
        chat_template=policy.codec.chat_template,
        source=run.origin.model.checkpoint or None,
        card=cards.text_for(run, policy.model, folder),
    )
    if policy.model != REWARD_MODEL:
        _write_adapters(run, policy.model, folder, dtype)
    prompts = [policy.codec.prompt_ids(question) for question in _QUESTIONS]
    report = exporter.export_report(folder, policy.spec, policy.params, prompts, dtype=dtype)
    log.info(_DIFFERENCE, folder, "logit", report["max_abs_diff"], report["max_rel_diff"])
    return digest_of(policy.params)


def _write_reward_model(run: Run, model: RewardPolicy, folder: pathlib.Path, dtype: str) -> str:
    """Writes a reward model with a head, with a report on its scores of made-up responses."""
    reward_model.save(
        folder,
        model.spec,
        model.params,
        model.readout,
        model.codec,
        dtype=dtype,
        source=run.origin.model.checkpoint or None,
        card=cards.text_for(run, REWARD_MODEL, folder),
    )
    end = [model.codec.eos_id] if model.readout.position == "eos" else []
    texts = [model.codec.prompt_ids(question) for question in _QUESTIONS]
    texts = [ids + model.codec.response_ids(_RESPONSE) + end for ids in texts]
    report = reward_model.export_report(
        folder, model.spec, model.params, model.readout, texts, dtype=dtype
    )
    log.info(_DIFFERENCE, folder, "score", report["max_abs_diff"], report["max_rel_diff"])
    return digest_of(model.params)


def _adapters_folder(folder: pathlib.Path) -> pathlib.Path:
    return folder.with_name(f"{folder.name}-adapters")


def _write_adapters(run: Run, model: Model, folder: pathlib.Path, dtype: str) -> None:
    """Writes `export/<model>-adapters/` for a model that was trained by adapters, over its parent.

    `export/<model>/` has them merged. The parent is a model of ours, tags and earlier rounds
    included, so it is its export that PEFT is pointed to.
    """
    if (found := models.adapters_of(run, model)) is None:
        return
    below = folder.with_name(found.parent.name)
    peft.save(
        _adapters_folder(folder),
        found.spec,
        found.factors,
        alpha=found.config.lora_alpha,
        rank=found.config.lora_rank,
        targets=lora.parse(found.config.lora_targets),
        base_name=str(below.absolute()),
        dtype=dtype,
        new_rows=found.new_rows,
    )
    if not below.exists():
        log.info(
            "%s: adapters over %s, which --config.export.model=%s writes",
            _adapters_folder(folder),
            below,
            found.parent.name,
        )
