"""The miniature: the whole of STAIR on a laptop CPU, nothing downloaded, in under ten minutes.

python -m stair_jax.main --config=configs/tiny.py
"""

from stair_jax import config


def get_config(arg: str | None = None) -> config.Config:
    """Returns the configuration; `:smoke` makes every size so small that a minute is enough."""
    a = config.parse_arg(arg, smoke=False)
    c = config.default()
    c.workdir = "runs/tiny"
    c.model.compute_dtype = "float32"
    c.model.size.theta = 100.0  # a context of a hundred tokens: slower waves would carry nothing
    c.data.update(sft_rows=30_000, round_prompts=360)
    c.sft.train.update(
        batch=32, micro_batch=32, epochs=1.2, lr=3e-3, beta2=0.98, remat="none",
        buckets=(64, 80, 96), save_every=200,
    )  # fmt: skip
    c.dpo.update(beta=0.2, anchors_per_pair=0.5)
    c.dpo.train.update(
        batch=32, micro_batch=32, lr=1e-4, remat="none", buckets=(64, 80, 96), save_every=20
    )
    c.search.update(
        iterations=24, temperature=1.3, top_p=1.0, top_k=0, max_depth=4, max_step_tokens=40,
        max_rollout_tokens=64, trees_in_flight=96, judge="verifier",
    )  # fmt: skip
    c.engine.update(
        slots=128, page_size=8, pool_bytes=200_000_000, max_context=104, prefill_rows=32,
        dtype="float32",
    )  # fmt: skip
    c.pairs.update(min_visits=2)
    c.evaluate.max_tokens = 64
    c.export.dtype = "float32"
    if a.smoke:
        c.data.update(sft_rows=640, round_prompts=12)
        c.sft.train.save_every = 5
        c.search.update(iterations=6, trees_in_flight=8)
        c.engine.slots = 16
    return c
