"""The miniature: the whole of STAIR on a laptop CPU, nothing downloaded, in a quarter of an hour.

python -m stair_jax.main --config=configs/tiny.py

`:baselines` adds the paper's other methods to the table; that takes some minutes more.
`:judging` lets the model itself judge helpfulness, which stage 1 then teaches it, too.
"""

from stair_jax import config


def get_config(arg: str | None = None) -> config.Config:
    """Returns the configuration; `:smoke` makes every size tiny, for a run of a few minutes."""
    a = config.parse_arg(arg, smoke=False, baselines=False, judging=False)
    c = config.default()
    c.workdir = "runs/tiny"
    c.stages = "sft,search,pairs,dpo,prm,evaluate"
    c.mesh.shape = (1, 1, 1)
    c.mesh.written_for = "two CPU cores and 4 GB"
    c.model.compute_dtype = "float32"
    c.data.update(sft_rows=30_000, round_prompts=400, preference_rows=2000)
    c.sft.train.update(
        batch=32,
        epochs=1.5,
        lr=3e-3,
        beta2=0.98,
        remat="none",
        head_chunk=4096,
        buckets=(64, 80, 96),
        save_every=200,
    )
    c.dpo.update(beta=0.1, sft_coef=1.0, anchors_per_pair=1.0)
    c.dpo.train.update(
        batch=32,
        lr=1e-4,
        epochs=2.0,
        remat="none",
        head_chunk=4096,
        buckets=(64, 80, 96),
        save_every=20,
    )
    c.prm.update(
        loss="implicit",
        readout="step_end",
        beta=0.3,
        reference="none",
        sft_coef=1.0,
        prompts=12_000,
        demonstrations=True,
        temperature=0.8,
        pairs_per_tree=6,
        more_layers=2,
    )
    c.prm.train.update(
        batch=64,
        lr=5e-4,
        epochs=2.0,
        beta2=0.98,
        batching="tree",
        remat="none",
        buckets=(192,),
        micro_tokens=576,
        save_every=100,
    )
    c.search.update(
        iterations=24,
        top_p=0.95,
        max_depth=4,
        max_step_tokens=40,
        max_rollout_tokens=64,
    )
    c.judge.update(safety="verifier", helpfulness="verifier")
    c.engine.update(
        slots=48,
        chunk=16,
        page_size=8,
        pool_bytes=100_000_000,
        max_context=104,
        prefill_rows=32,
        dtype="float32",
    )
    c.pairs.update(min_value_gap=1.0, min_visits=1, max_per_prompt=4, max_tokens=96)
    c.evaluate.max_tokens = 64
    c.evaluate.search = (
        "greedy,best_of_2,best_of_4,best_of_8,vote_of_8,random_of_8,oracle_of_8,beam_2x4"
    )
    c.export.dtype = "float32"
    if a.baselines:
        c.stages = "sft,search,pairs,dpo,baselines,prm,evaluate"
        c.baselines.update(names="sft,dpo,sacpo,self-rewarding", buckets=(24, 32, 48), sft_lr=3e-4)
    if a.judging:
        c.judge.update(helpfulness="self", templates="miniature", max_tokens=8)
    if a.smoke:
        c.data.update(sft_rows=1920, round_prompts=12, preference_rows=64)
        c.sft.train.update(epochs=1.0, save_every=10)
        c.dpo.train.update(batch=8, save_every=2)
        c.search.update(iterations=8, trees_in_flight=6, first_answers=0)
        c.prm.update(prompts=24, min_value_gap=0.1)
        c.evaluate.search = "greedy,best_of_2,oracle_of_2,beam_1x2"
        c.prm.train.update(batch=8, epochs=1.0, save_every=4)
        c.engine.slots = 16
        # A model that has barely learned the format: any difference must do for a pair.
        c.pairs.update(min_value_gap=0.1, good_value_safety=-9.0, good_value_helpfulness=-9.0)
    return c
