"""SmolLM2-135M-Instruct on real text: STAIR without any paid model, on two CPU cores or one GPU.

python -m stair_jax.main --config=configs/smollm135m.py:cpu --config.workdir=DIR \
  --config.data.root=FOLDER

FOLDER has `gsm8k/`, `advbench/`, `harmbench/`, `xstest/` and `jailbreakbench/` as their authors
publish them. The recipe `small` makes the rows. Safety is judged by the rule of refusals, and
helpfulness by the right answer. `:cpu` is one round, `:gpu` three; `:smoke` makes all numbers tiny.
"""

from stair_jax import config

TESTED = "gsm8k,xstest_safe,xstest_unsafe,harmbench"
FRAMED = "harmbench_framed,xstest_safe_framed"  # the same rows behind transforms
ATTACKED = "jailbreakbench,jbb_pair,jbb_gcg"


def get_config(arg: str | None = None) -> config.Config:
    """Returns the configuration of `:cpu`, which is the default, `:gpu` or `:smoke`."""
    a = config.parse_arg(arg, smoke=False, cpu=False, gpu=False)
    c = config.default()
    c.stages = "prepare,sft,search,pairs,dpo,prm,evaluate,export"
    c.rounds = 1
    c.model.checkpoint = "HuggingFaceTB/SmolLM2-135M-Instruct"
    c.mesh.shape = (1, 1, 1)
    c.mesh.written_for = "one H100" if a.gpu else "two CPU cores and 16 GB"
    c.mesh.replicas = 1  # the weights of one engine are half a gigabyte
    c.data.update(
        recipe="small", sft="prepared", prompts="prepared", decontaminate=f"{TESTED},{ATTACKED}"
    )
    c.recipe.update(
        taught=(100, 120, 48),
        round_safety=(10, 10, 10),
        round_helpful=(8, 8, 8),
        round_jailbreak=(0, 4, 6),
        lookalikes=6,
        prm=(0, 0),  # the reward model learns from the trees of the rounds
        # The templates of random search alone take 500 tokens.
        held_out="fiction,encoded,random_search",
    )
    c.sft.train.update(batch=16, epochs=2.0, lr=5e-4)
    c.dpo.train.update(batch=8, lr=2e-5)
    c.prm.train.update(batch=8, lr=2e-5)
    for part in (c.sft, c.dpo, c.prm):
        part.train.update(micro_tokens=2048, remat="none", buckets=(256, 384, 512), keep=1)
    c.search.update(
        iterations=24,
        num_children=3,
        max_depth=5,
        max_step_tokens=96,
        max_rollout_tokens=320,
        temperature=1.0,
    )
    c.judge.update(safety="rule", helpfulness="reference", scope="by_type")
    c.engine.update(slots=32, max_context=640, pool_bytes=600_000_000)
    c.pairs.update(min_visits=1, max_per_prompt=6, max_tokens=512, good_value_helpfulness=1.0)
    c.prm.update(pairs_per_tree=4, eval_share=0.2)
    c.evaluate.update(benchmarks=f"{TESTED},{FRAMED}", rows=100, max_tokens=320)
    if a.gpu:
        c.rounds = 3
        c.recipe.update(
            taught=(240, 600, 60), round_safety=(20, 16, 16), held_out="fiction,encoded"
        )
        c.recipe.update(round_helpful=(24, 24, 24), round_jailbreak=(0, 8, 12))
        c.search.iterations = 32
        c.sft.train.epochs = 3.0
        c.evaluate.benchmarks = f"{TESTED},{FRAMED},{ATTACKED}"
        c.engine.update(slots=256, max_context=1280, pool_bytes=12_000_000_000)
        for part in (c.sft, c.dpo, c.prm):
            part.train.update(micro_tokens=16_384, buckets=(256, 512, 1024))
    if a.smoke:
        c.recipe.update(taught=(40, 16, 8), round_safety=(3, 3, 3), round_helpful=(1, 1, 1))
        c.recipe.update(round_jailbreak=(0, 1, 1), lookalikes=1)
        # Answers that do not end have no score, and no pair is made: the format must be learned.
        c.sft.train.update(batch=8, epochs=3.0)
        c.sft.train.buckets = (208, 384)  # refusals, solutions
        for part in (c.dpo, c.prm):
            part.train.buckets = (384,)  # one shape to compile
        c.search.update(iterations=6, first_answers=0, max_step_tokens=80, max_rollout_tokens=224)
        c.engine.slots = 8
        c.evaluate.update(rows=2, max_tokens=32)
        # A model that has barely learned the format: any difference must do for a pair.
        c.pairs.max_tokens = 384
        c.pairs.update(min_value_gap=0.1, good_value_safety=-9.0, good_value_helpfulness=-9.0)
        c.prm.min_value_gap = 0.1
    return c
