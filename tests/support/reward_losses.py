"""A scalar head on a small model, and its loss."""

from stair_jax.train.reward_losses import Prm
from stair_jax.train.values import Values
from tests.support import specs
from tests.support.training import train_config

SPEC = specs.llama(L=1, D=8, N=4, K=2, H=6, F=10, V=13)
CONFIG = train_config(batch=8, buckets=(11,), save_every=100)
MODEL = Values.of(SPEC, CONFIG)
BT = Prm(scorer=MODEL, loss="bt", centering=0.3)
