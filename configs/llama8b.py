"""Llama-3.1-8B-Instruct, the paper's main run, on 8 GPUs of 80 GB.

python -m stair_jax.main --config=configs/llama8b.py --config.workdir=DIR \
  --config.data.sft=SFT.jsonl --config.data.prompts=ROUND-{round}.jsonl \
  --config.evaluate.benchmarks=HELD-OUT.jsonl
"""

from stair_jax import config


def get_config(arg: str | None = None) -> config.Config:
    """Returns the configuration; `:smoke` keeps the settings and makes every number tiny."""
    a = config.parse_arg(arg, smoke=False)
    c = config.default()
    c.stages = "sft,search,pairs,dpo,prm,evaluate,export"
    c.model.checkpoint = "meta-llama/Llama-3.1-8B-Instruct"
    c.data.update(sft="data/sft.jsonl", prompts="data/round-{round}.jsonl")
    c.evaluate.update(benchmarks="data/held-out.jsonl", search="greedy,best_of_n,beam")
    c.mesh.shape = (1, 8, 1)
    c.mesh.written_for = "8 GPUs of 80 GB"
    c.sft.train.update(lr=5e-6)
    c.dpo.update(beta=0.2)
    c.dpo.train.update(lr=1e-6)
    for part in (c.sft, c.dpo, c.prm):  # 53 GB of a GPU, and a tenth less time than "full"
        part.train.remat = "products"
    if a.smoke:
        c.data.update(sft_rows=16, round_prompts=4)
        c.sft.train.update(batch=8, epochs=1.0)
        c.dpo.train.update(batch=8)
        c.search.update(iterations=8, max_step_tokens=16, max_rollout_tokens=48, trees_in_flight=4)
        c.search.first_answers = 0  # all of them are cut
        c.judge.max_tokens = 16
        c.evaluate.update(search="greedy,best_of_2", max_tokens=64)
        c.prm.train.batch = 8
        c.engine.update(slots=8, max_context=1024)
    return c
