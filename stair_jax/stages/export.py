"""Stage export: a model of the run as a Hugging Face folder, with a report on what it computes."""

import logging

from stair_jax import text
from stair_jax.config.stages import EXPORT, PRM
from stair_jax.hf import exporter, importer, peft, reward_model
from stair_jax.model import lora
from stair_jax.run import models
from stair_jax.run.hashes import digest_of
from stair_jax.run.models import Policy, RewardPolicy
from stair_jax.run.workdir import Run

log = logging.getLogger(__name__)

NAME = PRM.artefact()  # the reward model's

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
    name = run.config.export.model or models.names(run)[-1]
    if name == NAME:
        found = models.reward_model(run)
        if found.readout.loss != "implicit":
            _export_reward_model(run, found)
            return
        parent, policy = NAME, Policy(NAME, found.spec, found.params, found.codec)
    else:
        parent, policy = models.artefact_of(name), models.load(run, name)
    run.begin(f"export/{name}", EXPORT.name, (parent,) if parent else ())
    folder, dtype = run.workdir / "export" / name, _dtype(run)
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
    if name != NAME:
        _export_adapters(run, name, dtype)
    prompts = [policy.codec.prompt_ids(question) for question in _QUESTIONS]
    report = exporter.export_report(folder, policy.spec, policy.params, prompts, dtype=dtype)
    log.info(_DIFFERENCE, folder, "logit", report["max_abs_diff"], report["max_rel_diff"])
    run.lineage.finish(f"export/{name}", digest_of(policy.params), folder=str(folder))


def _dtype(run: Run) -> str:
    """Returns the dtype of an export; "auto" is that of the checkpoint that the run began with."""
    if run.config.export.dtype != "auto":
        return run.config.export.dtype
    source = run.origin.model.checkpoint
    return importer.dtype_of(source) if source else "float32"


def _export_reward_model(run: Run, model: RewardPolicy) -> None:
    """Writes `export/prm/`, with a report on its scores of short made-up responses."""
    folder, dtype = run.workdir / "export" / NAME, _dtype(run)
    run.begin(f"export/{NAME}", EXPORT.name, (NAME,))
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
    run.lineage.finish(f"export/{NAME}", digest_of(model.params), folder=str(folder))


def _export_adapters(run: Run, name: str, dtype: str) -> None:
    """Writes `export/<model>-adapters/` for a model that was trained by adapters, over its parent.

    `export/<model>/` has them merged. The parent is a model of ours, tags and earlier rounds
    included, so it is its export that PEFT is pointed to.
    """
    if (found := models.adapters_of(run, name)) is None:
        return
    folder, below = run.workdir / "export", run.workdir / "export" / found.parent
    peft.save(
        folder / f"{name}-adapters",
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
            folder / f"{name}-adapters",
            below,
            found.parent,
        )
