"""Stage export: a model of the run as a Hugging Face folder, with a report on its logits."""

import logging

from stair_jax import text
from stair_jax.io import hf, hf_export, peft
from stair_jax.model import lora
from stair_jax.stages import policies
from stair_jax.stages.run import Run, digest_of

log = logging.getLogger(__name__)

_QUESTIONS = (  # of the report; any text will do
    "what is 1 2 + 3 4 ?",
    "how do i sort the list ?",
    "Name three rivers, and say which one is the longest.",
)


def run(run: Run) -> None:
    """Writes `export/<model>/` for the model that `export.model` names, else the last finished."""
    name = run.config.export.model or policies.names(run)[-1]
    parent = policies.artefact_of(name)
    policy = policies.load(run, name)
    run.begin(f"export/{name}", "export", (parent,) if parent else ())
    folder, dtype = run.workdir / "export" / name, run.config.export.dtype
    if dtype == "auto":
        source = run.config.model.checkpoint
        dtype = hf.dtype_of(source) if source else "float32"
    hf_export.save(
        folder, policy.spec, policy.params, policy.codec.tokenizer,
        end_ids=sorted(policy.codec.end_ids), dtype=dtype,
        chat_template=text.TEMPLATES[policy.codec.template],
        source=run.config.model.checkpoint or None,
    )  # fmt: skip
    _export_adapters(run, name, dtype)
    prompts = [policy.codec.prompt_ids(question) for question in _QUESTIONS]
    report = hf_export.export_report(folder, policy.spec, policy.params, prompts, dtype=dtype)
    log.info("%s: largest logit difference %s", folder, report["max_abs_diff"])
    run.lineage.finish(f"export/{name}", digest_of(policy.params), folder=str(folder))


def _export_adapters(run: Run, name: str, dtype: str) -> None:
    """Writes `export/<model>-adapters/` for a model that was trained by adapters, over its parent.

    `export/<model>/` has them merged. The parent is a model of ours, tags and earlier rounds
    included, so it is its export that PEFT is pointed to.
    """
    if (found := policies.adapters_of(run, name)) is None:
        return
    folder, below = run.workdir / "export", run.workdir / "export" / found.parent
    peft.save(
        folder / f"{name}-adapters", found.spec, found.factors, alpha=found.config.lora_alpha,
        rank=found.config.lora_rank, targets=lora.parse(found.config.lora_targets),
        base_name=str(below.absolute()), dtype=dtype,
    )  # fmt: skip
    if not below.exists():
        log.info("%s: adapters over %s, which --config.export.model=%s writes",
                 folder / f"{name}-adapters", below, found.parent)  # fmt: skip
