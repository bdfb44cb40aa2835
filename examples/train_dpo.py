"""Train on preference pairs by DPO.

A small model with random weights learns to prefer eight answers to eight others. One sees the
margins: how much more likely than at the start the chosen answers have become, less the rejected.
"""

import pathlib
import tempfile

import jax

from stair_jax import jsonl, mesh
from stair_jax.config.schema import DpoConfig, TrainConfig
from stair_jax.data.examples import preference_example
from stair_jax.data.pair_batches import DpoData
from stair_jax.log.metrics import Metrics
from stair_jax.miniature import preferences, tokenizer
from stair_jax.model import transformer
from stair_jax.model.spec import Spec
from stair_jax.text import Codec
from stair_jax.train import logprobs, loop, losses

codec = Codec(tokenizer.build(), "llama3")
spec = Spec.plain(codec.size, L=1, D=32, N=2, K=1, H=16, F=64, eps=1e-5, theta=100.0)
config = TrainConfig(
    batch=8, lr=1e-3, epochs=10, buckets=(48,), remat="none", compute_dtype="float32"
)
objective = DpoConfig(beta=0.1, scope="response", reference="on_the_fly", sft_coef=0.0)
rows = preferences.preferences(seed=0, count=8)
pairs = [preference_example(row, codec) for row in rows]
data = DpoData(pairs, (), config, objective, seed=0, pad_id=codec.pad_id, row_shards=1)
init = jax.jit(transformer.init, static_argnums=0)

with tempfile.TemporaryDirectory() as folder, Metrics(folder) as metrics:
    loop.fit(
        init(spec, jax.random.key(0)),
        data,
        loss=losses.Dpo.of(logprobs.Scorer.of(spec, config), objective),
        config=config,
        mesh=mesh.make((1, 1, 1)),
        folder=pathlib.Path(folder) / "checkpoints",
        metrics=metrics,
        stage="dpo",
        frozen={"reference": init(spec, jax.random.key(0))},
    )
    lines = jsonl.read_json_lines(pathlib.Path(folder) / "metrics.jsonl")

print(f"{rows[0].question!r}: {rows[0].chosen!r} rather than {rows[0].rejected!r}, and 7 more")
for line in lines:
    if "dpo_loss" in line:  # one a step; others are of speed
        margin = line["rewards/margins"]
        print(f"step {line['step']}: loss {line['dpo_loss']:.3f}, margin {margin:+.3f}")
