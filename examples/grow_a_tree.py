"""Grow a search tree on a prompt.

A small model learns STAIR's format from a few hundred answers of the miniature's teacher. Then
Safety-Informed MCTS grows a tree on one question: one sees its steps with visits and mean rewards.
A right answer is worth 3, a wrong one 1.5, a response without an answer -1.
"""

import pathlib
import tempfile

import jax

from stair_jax import mesh
from stair_jax.config.schema import EngineConfig, RewardConfig, SearchConfig, TrainConfig
from stair_jax.data.examples import sft_examples
from stair_jax.data.sft_batches import SftData
from stair_jax.engine.engine import Engine
from stair_jax.judges.verifier import VerifierJudge
from stair_jax.log.metrics import Metrics
from stair_jax.miniature import splits, tokenizer, verifier
from stair_jax.model import transformer
from stair_jax.model.spec import Spec
from stair_jax.search import driver
from stair_jax.search.reward import Reward
from stair_jax.text import Codec
from stair_jax.train import logprobs, loop, losses

codec = Codec(tokenizer.build(), "llama3")
spec = Spec.plain(codec.size, L=1, D=64, N=4, K=2, H=16, F=128, eps=1e-5, theta=100.0)
train = TrainConfig(batch=32, lr=1e-2, epochs=6, buckets=(96,), compute_dtype="float32")
rows = sft_examples(splits.sft_rows(seed=0, count=512), codec)
data = SftData(rows, train, seed=0, pad_id=codec.pad_id, row_shards=1)
with tempfile.TemporaryDirectory() as folder, Metrics(folder) as metrics:
    model = loop.fit(
        jax.jit(transformer.init, static_argnums=0)(spec, jax.random.key(0)),
        data,
        loss=losses.Sft(logprobs.Scorer.of(spec, train)),
        config=train,
        mesh=mesh.make((1, 1, 1)),
        folder=pathlib.Path(folder) / "checkpoints",
        metrics=metrics,
        stage="sft",
    )
sizes = EngineConfig(slots=8, page_size=16, max_context=96, dtype="float32")
engine = Engine(spec, model.params, config=sizes, stops=codec.stops, vocab=codec.size)
search = SearchConfig(iterations=24, max_step_tokens=40, max_rollout_tokens=64, trees_in_flight=1)
driver.grow(
    splits.round_prompts(1, seed=0, count=1),
    engine=engine,
    judge=VerifierJudge(verifier.verify),
    codec=codec,
    config=search,
    reward=Reward("paper", RewardConfig()),
    seed=0,
    on_tree=(trees := []).append,
)
for node in sorted(trees[0].nodes, key=lambda node: node.tag):
    said = node.text.strip() or trees[0].prompt.question  # the root says nothing
    print(f"{'  ' * node.depth}{node.tag}: {node.visits} visits, {node.value:+.2f}  {said}")
