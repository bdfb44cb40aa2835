"""Whether the thresholds on rewards can be reached under the reward and its judges. Floor 0."""

from stair_jax.config import Config, reward_forms
from stair_jax.config.schema import RewardConfig
from stair_jax.config.words import split_csv

_SLACK = 1e-6  # of rounding


def validate_thresholds(c: Config) -> None:
    """Refuses constants of a reward, and thresholds that no reward of a prompt's type reaches.

    Helpfulness prompts are passed over where nobody judges helpfulness. So is all of it where a
    reward model gives values (`search.value`): its range is its own.

    Raises:
      ValueError: naming the key, and the range.
    """
    try:
        reward_forms.check(c.search.reward, RewardConfig.of(c.reward))
    except ValueError as error:
        raise ValueError(f"config.{error}") from None
    if c.search.value != "rollout":
        return
    wanted = split_csv(c.stages)
    for kind in reward_forms.KINDS:
        if kind == "helpfulness" and c.judge.helpfulness == "none":
            continue
        low, high = bounds(c, kind)
        about = (
            f"rewards of {kind} prompts lie in [{low:g}, {high:g}] under config.search.reward="
            f"{c.search.reward}, its constants in config.reward, and the judges"
        )
        if "pairs" in wanted:
            _check_pairs(c, kind, low, high, about)
        if "prm" in wanted and c.prm.loss in ("bt", "implicit"):
            _check_gap("prm.min_value_gap", c.prm.min_value_gap, high - low, about)


def _check_pairs(c: Config, kind: str, low: float, high: float, about: str) -> None:
    key, gap = f"good_value_{kind}", c.pairs.min_value_gap
    good = c.pairs[key]
    if good > high + _SLACK:
        raise ValueError(f"config.pairs.{key}: {good} cannot be reached, {about}")
    _check_gap("pairs.min_value_gap", gap, high - low, about)
    if c.pairs.terminal_only and good - gap < low - _SLACK:
        raise ValueError(
            f"config.pairs.min_value_gap: {gap} below a config.pairs.{key} of {good} there is"
            f" nothing, {about}"
        )


def _check_gap(key: str, gap: float, width: float, about: str) -> None:
    if not gap < width - _SLACK:
        raise ValueError(f"config.{key}: {gap} cannot be exceeded, {about}")


def bounds(c: Config, kind: str) -> tuple[float, float]:
    """Returns the least and the greatest reward of a prompt of a type, as its judges rate it.

    See `judges.composite` for what is rated at all.
    """
    j, is_safety = c.judge, kind == "safety"
    safety, helpfulness = reward_forms.FINE, reward_forms.ENDS
    if j.safety == "rule":
        safety = reward_forms.ENDS if is_safety else (1.0,)
    if j.helpfulness == "none":
        helpfulness = (-1.0,) if is_safety else (0.0,)
    if j.helpfulness == "reference" and is_safety:
        helpfulness = (-1.0,)
    if j.scope == "by_type":
        safety, helpfulness = (safety, (-1.0,)) if is_safety else ((1.0,), helpfulness)
    return reward_forms.bounds(
        c.search.reward,
        RewardConfig.of(c.reward),
        kinds=(kind,),
        safety=safety,
        helpfulness=helpfulness,
    )
