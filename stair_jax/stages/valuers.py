"""The reward model that a search takes its values from."""

from stair_jax.engine.scoring import Scoring
from stair_jax.io import hf_reward
from stair_jax.rewards.prm import RewardModel
from stair_jax.search.valuing import FROM_MODEL
from stair_jax.stages import policies
from stair_jax.stages.policies import Policy
from stair_jax.stages.run import Run, engine_config


def valuer_of(run: Run, policy: Policy) -> RewardModel | None:
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
    place, sizes = policies.engine_places(run)[0], engine_config(run.config)
    found = hf_reward.load(path, place, sizes.dtype)
    if found.codec is None:
        raise ValueError(
            f"config.search.value_model: {path} reads no steps, it is no export of ours"
        )
    mine, its = policy.codec, found.codec
    if (mine.size, mine.eos_id, mine.stops) != (its.size, its.eos_id, its.stops):
        raise ValueError(f"config.search.value_model: {path} has other tokens than {policy.name}")
    scoring = Scoring(found.spec, found.params, config=sizes, mesh=place, give_away=True)
    return RewardModel(scoring, found.readout, its.eos_id)
