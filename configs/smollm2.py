"""SmolLM2-135M-Instruct, a real model small enough for two CPU cores or one small GPU.

python -m stair_jax.main --config=configs/smollm2.py --config.workdir=DIR \
  --config.model.checkpoint=PATH_OR_HUB_NAME

From the checkpoint to an export, one round: it shows that a real model comes through, and learns
STAIR's tags from 96 rows. Rows, prompts and truth are the miniature's, so nothing else is needed.
"""

from stair_jax import config


def get_config(arg: str | None = None) -> config.Config:
    """Returns the configuration; `:smoke` keeps the settings and makes every number tiny."""
    a = config.parse_arg(arg, smoke=False)
    c = config.default()
    c.stages = "sft,search,pairs,dpo,prm,export"
    c.rounds = 1
    c.model.checkpoint = "HuggingFaceTB/SmolLM2-135M-Instruct"
    c.mesh.shape = (1, 1, 1)
    c.mesh.written_for = "two CPU cores and 8 GB, or one small GPU"
    c.mesh.replicas = 1  # the weights of one engine are half a gigabyte
    c.data.update(sft_rows=96, round_prompts=8)
    c.sft.train.update(batch=8, epochs=2.0, lr=1e-4)
    c.dpo.train.update(batch=8, lr=1e-5)
    c.prm.train.update(batch=8, lr=2e-5)
    for part in (c.sft, c.dpo, c.prm):
        part.train.update(micro_tokens=1024, remat="none", buckets=(96, 128, 192), keep=1)
    c.search.update(
        iterations=12,
        num_children=3,
        max_depth=4,
        max_step_tokens=40,
        max_rollout_tokens=80,
        temperature=1.0,
    )
    c.judge.update(safety="verifier", helpfulness="verifier")
    c.engine.update(slots=16, max_context=256, pool_bytes=300_000_000)
    c.pairs.update(min_visits=1, max_per_prompt=4, max_tokens=192, good_value_helpfulness=1.0)
    c.prm.update(pairs_per_tree=4, eval_share=0.2)
    if a.smoke:
        c.data.update(sft_rows=16, round_prompts=2)
        c.sft.train.epochs = 1.0
        c.search.update(iterations=4, first_answers=0)
        c.engine.slots = 8
        # A model that knows no format yet: any difference must do for a pair.
        c.pairs.update(min_value_gap=0.1, good_value_safety=-9.0, good_value_helpfulness=-9.0)
        c.prm.min_value_gap = 0.1
    return c
