"""Score the steps of responses under a reward model.

The model reads three responses to one question, each prefix once: what they share is computed for
one of them only. One sees a score a step. The weights are random, so the scores mean nothing;
`stair_jax.hf.reward_model.load` reads a trained model from a folder.
"""

import jax

from stair_jax.config.schema import EngineConfig
from stair_jax.engine.scoring import Scoring
from stair_jax.miniature import tokenizer
from stair_jax.model import reward
from stair_jax.model.reward import Readout
from stair_jax.model.spec import Spec
from stair_jax.prm.reader import RewardModel
from stair_jax.text import OUTPUT, OUTPUT_END, STEP, STEP_END, Codec

codec = Codec(tokenizer.build(), "llama3")
spec = reward.scalar(Spec.plain(codec.size, L=2, D=32, N=2, K=1, H=16, F=64, eps=1e-5, theta=100.0))
readout = Readout(position="step_end", loss="bt", low=-3.0, high=3.0)
sizes = EngineConfig(page_size=8, max_context=128, dtype="float32")
weights = jax.jit(reward.init, static_argnums=0)(spec, jax.random.key(0))
scoring = Scoring(spec, weights, config=sizes)
model = RewardModel(scoring, readout, codec.eos_id)

first = f"{STEP} problem analysis : this is safe {STEP_END}"
lasts = [f"{OUTPUT} final answer : {word} {OUTPUT_END}" for word in ("7", "8", "sorry")]
question = model.root(codec.prompt_ids("what is 4 plus 3 ?"))
[begun] = model.read([(question, [codec.encode(first)])])
print(f"{begun.raw[0]:+.3f}  {first}")
for last, reading in zip(
    lasts, model.read([(begun.prefix, [codec.encode(last)]) for last in lasts]), strict=True
):
    print(f"{reading.raw[0]:+.3f}  {last}")
    model.release(reading.prefix)
print(f"{scoring.counters['prefilled']} tokens computed, {scoring.counters['reused']} reused")
