"""Stage export: a model of the run as a Hugging Face folder, with a report on what it computes."""

import logging

from stair_jax import text
from stair_jax.config.stages import EXPORT
from stair_jax.hf import exporter, importer, peft, reward_model
from stair_jax.model import lora
from stair_jax.run import known_models, models
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


def run(run: Run) -> None:
    """Writes `export/<model>/` for the model that `export.model` names, else the last finished.

    The model "prm" is the reward model; what is reported of it are scores, of others logits. An
    implicit one is a policy like the others.
    """
    asked = run.config.export.model
    if asked == REWARD_MODEL.name:
        found = models.reward_model(run)
        if found.readout.loss != "implicit":
            _export_reward_model(run, found)
            return
        policy = Policy(REWARD_MODEL, found.spec, found.params, found.codec)
    else:
        policy = models.load(run, known_models.named_or_last(run, asked))
    model, dtype = policy.model, _dtype(run)
    artefact = f"export/{model.name}"
    folder = run.workdir / artefact
    run.begin(artefact, EXPORT.name, model.parents)
    exporter.save(
        folder,
        policy.spec,
        policy.params,
        policy.codec.tokenizer,
        end_ids=sorted(policy.codec.end_ids),
        dtype=dtype,
        chat_template=policy.codec.chat_template,
        source=run.origin.model.checkpoint or None,
    )
    if model != REWARD_MODEL:
        _export_adapters(run, model, dtype)
    prompts = [policy.codec.prompt_ids(question) for question in _QUESTIONS]
    report = exporter.export_report(folder, policy.spec, policy.params, prompts, dtype=dtype)
    log.info(_DIFFERENCE, folder, "logit", report["max_abs_diff"], report["max_rel_diff"])
    run.lineage.finish(artefact, digest_of(policy.params), folder=str(folder))


def _dtype(run: Run) -> str:
    """Returns the dtype of an export; "auto" is that of the checkpoint that the run began with."""
    if run.config.export.dtype != "auto":
        return run.config.export.dtype
    source = run.origin.model.checkpoint
    return importer.dtype_of(source) if source else "float32"


def _export_reward_model(run: Run, model: RewardPolicy) -> None:
    """Writes `export/prm/`, with a report on its scores of short made-up responses."""
    artefact, dtype = f"export/{REWARD_MODEL.name}", _dtype(run)
    folder = run.workdir / artefact
    run.begin(artefact, EXPORT.name, REWARD_MODEL.parents)
    reward_model.save(
        folder,
        model.spec,
        model.params,
        model.readout,
        model.codec,
        dtype=dtype,
        source=run.origin.model.checkpoint or None,
    )
    end = [model.codec.eos_id] if model.readout.position == "eos" else []
    texts = [model.codec.prompt_ids(question) for question in _QUESTIONS]
    texts = [ids + model.codec.response_ids(_RESPONSE) + end for ids in texts]
    report = reward_model.export_report(
        folder, model.spec, model.params, model.readout, texts, dtype=dtype
    )
    log.info(_DIFFERENCE, folder, "score", report["max_abs_diff"], report["max_rel_diff"])
    run.lineage.finish(artefact, digest_of(model.params), folder=str(folder))


def _export_adapters(run: Run, model: Model, dtype: str) -> None:
    """Writes `export/<model>-adapters/` for a model that was trained by adapters, over its parent.

    `export/<model>/` has them merged. The parent is a model of ours, tags and earlier rounds
    included, so it is its export that PEFT is pointed to.
    """
    if (found := models.adapters_of(run, model)) is None:
        return
    folder, below = run.workdir / "export", run.workdir / "export" / found.parent.name
    peft.save(
        folder / f"{model.name}-adapters",
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
            folder / f"{model.name}-adapters",
            below,
            found.parent.name,
        )
