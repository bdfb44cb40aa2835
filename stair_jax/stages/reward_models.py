"""The run's reward model, ready to read steps."""

from stair_jax.engine.likelihood import Likelihood
from stair_jax.engine.scoring import Scoring
from stair_jax.rewards.implicit import ImplicitRewardModel
from stair_jax.rewards.prm import RewardModel, RewardModelLike
from stair_jax.stages import policies
from stair_jax.stages.run import Run, engine_config


def open_one(run: Run) -> RewardModelLike:
    """Returns the reward model that stage prm has trained, on the engine's first place.

    It is best made before the policy's engine, which takes most of the memory that it finds.

    Raises:
      ValueError: where there is none.
    """
    found, config = policies.reward_model(run, for_engine=True), engine_config(run.config)
    place = policies.engine_places(run)[0]
    if found.readout.loss != "implicit":
        scoring = Scoring(found.spec, found.params, config=config, mesh=place, give_away=True)
        return RewardModel(scoring, found.readout, found.codec.eos_id)
    model = Likelihood(found.spec, found.params, config=config, mesh=place, give_away=True)
    reference = None
    if found.reference:
        start = policies.load(run, found.reference, for_engine=True)
        reference = Likelihood(start.spec, start.params, config=config, mesh=place, give_away=True)
    return ImplicitRewardModel(model, reference, found.readout, found.beta)
