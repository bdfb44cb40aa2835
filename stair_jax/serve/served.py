"""The models that a server answers with, and what each request asks of them."""

import dataclasses
import logging
import time
from collections.abc import Sequence
from typing import Any

from stair_jax import text
from stair_jax.config.schema import GuidedConfig
from stair_jax.engine import placing, prefill
from stair_jax.engine.device import joins
from stair_jax.engine.engine import Engine
from stair_jax.engine.likelihood import Alternatives
from stair_jax.engine.request import Sampling
from stair_jax.prm.reader import RewardModelLike
from stair_jax.run import known_models, models, reward_models
from stair_jax.run.workdir import Run, engine_config
from stair_jax.text import Codec

log = logging.getLogger(__name__)

_READ_TOGETHER = 4  # contexts that the pool of log-probs has room for, beside the one at work


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawing:
    """Continuations of some prompts; those of a prompt are numbered one after the other.

    Attributes:
      prompts: their ids.
      keys: of the draws, one a continuation of a prompt.
      max_tokens: of each.
      sampling: how each token is drawn.
      grows: whether tokens are handed on while more are drawn.
    """

    prompts: tuple[tuple[int, ...], ...]
    keys: tuple[tuple[int | str, ...], ...]
    max_tokens: int
    sampling: Sampling
    grows: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Served:
    """A model, ready to answer.

    Attributes:
      name: what clients call it.
      run: that it belongs to; of a Hugging Face folder, one that has nothing else.
      policy: its codec and sizes; the engine has the weights.
      engine: that draws.
      reader: that finds log-probs, with the engine's weights.
      reward_model: of the run; None where the server was not to load it.
      created: when it was loaded, in seconds of Unix time.
    """

    name: str
    run: Run
    policy: models.Policy
    engine: Any
    reader: Alternatives
    reward_model: RewardModelLike | None = None
    created: int = dataclasses.field(default_factory=lambda: int(time.time()))

    @property
    def codec(self) -> Codec:
        """How it is spoken to."""
        return self.policy.codec

    @property
    def direct(self) -> bool:
        """Whether it answers without reasoning."""
        return self.policy.model.direct

    @property
    def guided(self) -> GuidedConfig:
        """How the run finds answers at test time."""
        return GuidedConfig.of(self.run.config.evaluate)

    @property
    def max_context(self) -> int:
        """Tokens of a prompt and its answer together."""
        return self.engine.config.max_context

    @property
    def begins(self) -> frozenset[int]:
        """Ids that may stand before a text without being part of it."""
        tokenizer = self.codec.tokenizer
        ids = {tokenizer.bos_token_id, tokenizer.eos_token_id, self.codec.eos_id}
        return frozenset(ids - {None})

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids of the special tokens, the tags among them."""
        vocabulary = self.codec.tokenizer.get_vocab()
        return frozenset(vocabulary[token] for token in self.codec.specials if token in vocabulary)

    @property
    def output_id(self) -> int:
        """The tag that opens an answer."""
        return self.codec.tokenizer.get_vocab()[text.OUTPUT]


def load(run: Run, names: Sequence[str], *, search: bool, alias: str = "") -> list[Served]:
    """Returns models of a run, each with an engine of its own.

    Args:
      run: the run.
      names: of the models; none: the last one.
      search: whether to load the run's reward model, which all of them share.
      alias: what clients call the model, where there is one; "": by its own name.

    Raises:
      ValueError: where one of them, or the reward model, is not there.
    """
    wanted = [known_models.named(run, name) for name in names]
    wanted = wanted or [known_models.named_or_last(run, "")]
    # First: an engine takes most of the memory that it finds.
    reward_model = reward_models.open_one(run) if search else None
    return [
        _loaded(run, model, reward_model, alias if len(wanted) == 1 and alias else model.name)
        for model in wanted
    ]


def _loaded(
    run: Run, model: known_models.Model, reward_model: RewardModelLike | None, name: str
) -> Served:
    policy, config = models.load(run, model, for_engine=True), engine_config(run.config)
    (place,) = models.engine_places(run)
    (placed,) = placing.place(
        policy.spec,
        policy.params,
        [place],
        dtype=config.dtype,
        joined=joins(config),
        give_away=True,
    )
    page, context = prefill.page_bytes(policy.spec, config), config.max_context + 1
    pages = _READ_TOGETHER * -(-context // config.page_size) + 1
    reader = Alternatives(policy.spec, placed, config=config, mesh=place, pool_bytes=pages * page)
    engine = Engine(
        policy.spec,
        placed,
        config=config,
        stops=policy.codec.stops,
        vocab=policy.codec.size,
        mesh=place,
    )
    return Served(
        name=name,
        run=run,
        policy=policy,
        engine=engine,
        reader=reader,
        reward_model=reward_model,
    )
