"""What the settings of judges, reward model and test-time search must be. Floor 0."""

from stair_jax.config import Config, redaction
from stair_jax.config.sources import is_world
from stair_jax.config.strategies import GREEDY, parse_all
from stair_jax.config.words import split_csv


def validate_rewards(c: Config) -> None:
    """Refuses settings that cannot work; raises as `checks.validate`."""
    _validate_value(c)
    _validate_judge(c)
    _validate_prm(c)
    _validate_evaluate(c)
    _validate_draws(c)


def _validate_value(c: Config) -> None:
    if c.search.value != "rollout" and not c.search.value_model:
        raise ValueError(
            f"config.search.value_model: empty, config.search.value={c.search.value!r} wants the"
            " folder or hub name of a reward model"
        )


def _validate_judge(c: Config) -> None:
    j, sides = c.judge, (c.judge.safety, c.judge.helpfulness)
    if "remote" in sides:
        _validate_remote(j)
    if "reward_model" in sides and not j.reward_model:
        raise ValueError("config.judge.reward_model: empty, expected a folder or a hub name")
    own = is_world(j.templates)
    if own and (c.model.checkpoint or c.data.sft != j.templates):
        raise ValueError(
            f"config.judge.templates: {j.templates!r} is for a model that stage 1 teaches to judge,"
            f" so config.model.checkpoint must be empty and config.data.sft {j.templates!r}"
        )
    judged = "search" in split_csv(c.stages) or "self-rewarding" in split_csv(c.baselines.names)
    if judged and "self" in sides and not (own or c.model.checkpoint):
        raise ValueError(
            "config.judge: the miniature's model can judge itself only in its own words, with"
            " config.judge.templates='miniature'"
        )


def _validate_remote(j: Config) -> None:
    if not (j.model and j.endpoint.startswith(("http://", "https://"))):
        address = redaction.shown_address(j.endpoint)
        raise ValueError(
            f"config.judge: endpoint={address!r} model={j.model!r}, 'remote' needs the base URL"
            " of a server and the name of its model"
        )
    redaction.check_address("judge.endpoint", j.endpoint)
    redaction.key()  # refuses one that cannot be sent


def _validate_prm(c: Config) -> None:
    p = c.prm
    pairs, implicit = p.loss in ("bt", "implicit"), p.loss == "implicit"
    if p.train.batching == "tree" and not pairs:
        raise ValueError(
            f"config.prm.train.batching: 'tree' packs pairs, config.prm.loss={p.loss!r} has none"
        )
    if implicit and p.readout != "step_end":
        raise ValueError(
            f"config.prm.readout: {p.readout!r}, the log-ratio of an implicit reward model is read"
            " at 'step_end'"
        )
    if p.train.lora_rank and (implicit or p.more_layers):
        raise ValueError(
            f"config.prm.train.lora_rank: {p.train.lora_rank} with"
            f" {'prm.loss=implicit' if implicit else 'prm.more_layers'}, expected 0"
        )


def _validate_evaluate(c: Config) -> None:
    if not split_csv(c.evaluate.search):
        raise ValueError("config.evaluate.search: empty, expected at least greedy")
    try:
        parse_all(split_csv(c.evaluate.search))
    except ValueError as error:
        raise ValueError(f"config.evaluate.search: {error}") from None


def _validate_draws(c: Config) -> None:
    """Refuses several draws that a temperature of 0 makes the same one."""
    searches = set(parse_all(split_csv(c.evaluate.search))) - {GREEDY}
    for section, several in (
        ("search", "search" in split_csv(c.stages) and c.search.num_children > 1),
        ("evaluate", "evaluate" in split_csv(c.stages) and searches),
    ):
        if several and not c[section].temperature:
            raise ValueError(
                f"config.{section}.temperature: 0 draws the same tokens each time, expected a"
                " number above 0"
            )
