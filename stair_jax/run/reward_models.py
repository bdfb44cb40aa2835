"""The run's reward model, ready to read steps."""

from stair_jax.engine.likelihood import Likelihood
from stair_jax.engine.scoring import Scoring
from stair_jax.hf import reward_model
from stair_jax.prm.implicit import ImplicitRewardModel
from stair_jax.prm.reader import RewardModel, RewardModelLike
from stair_jax.run import models
from stair_jax.run.models import Policy
from stair_jax.run.workdir import Run, engine_config
from stair_jax.search.node_values import FROM_MODEL


def open_one(run: Run) -> RewardModelLike:
    """Returns the reward model that stage prm has trained, on the engine's first place.

    It is best made before the policy's engine, which takes most of the memory that it finds.

    Raises:
      ValueError: where there is none.
    """
    found, config = models.reward_model(run, for_engine=True), engine_config(run.config)
    place = models.engine_places(run)[0]
    if found.readout.loss != "implicit":
        scoring = Scoring(found.spec, found.params, config=config, mesh=place, give_away=True)
        return RewardModel(scoring, found.readout, found.codec.eos_id)
    model = Likelihood(found.spec, found.params, config=config, mesh=place, give_away=True)
    reference = None
    if found.reference:
        start = models.load(run, found.reference, for_engine=True)
        reference = Likelihood(start.spec, start.params, config=config, mesh=place, give_away=True)
    return ImplicitRewardModel(model, reference, found.readout, found.beta)


def prm_for_search(run: Run, policy: Policy) -> RewardModel | None:
    """Returns the reward model that `config.search.value` wants; None where it wants none.

    It lies where the engine's first replica does. It is best made before the engine, which takes
    most of the memory that it finds.

    Raises:
      ValueError: where there is no such model, or it does not read the policy's tokens.
    """
    value, path = run.config.search.value, run.config.search.value_model
    if value not in FROM_MODEL:
        return None
    if not path:
        raise ValueError(
            f"config.search.value_model: empty, search.value {value!r} wants the folder or hub name"
            " of a reward model"
        )
    place, sizes = models.engine_places(run)[0], engine_config(run.config)
    found = reward_model.load(path, place, sizes.dtype)
    if found.codec is None:
        raise ValueError(
            f"config.search.value_model: {path} reads no steps, it is no export of ours"
        )
    mine, its = policy.codec, found.codec
    if (mine.size, mine.eos_id, mine.stops) != (its.size, its.eos_id, its.stops):
        raise ValueError(
            f"config.search.value_model: {path} has other tokens than {policy.model.name}"
        )
    scoring = Scoring(found.spec, found.params, config=sizes, mesh=place, give_away=True)
    return RewardModel(scoring, found.readout, its.eos_id)
