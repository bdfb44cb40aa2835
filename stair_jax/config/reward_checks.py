"""What the settings of judges, reward model and test-time search must be. Floor 0."""

from stair_jax.config import BENCHMARKS, ROW_FILES, Config, redaction
from stair_jax.config.ignored import REQUEST
from stair_jax.config.schema import words
from stair_jax.config.strategies import GREEDY, parse_all


def validate_rewards(c: Config) -> None:
    """Refuses settings that cannot work; raises as `checks.validate`."""
    _validate_value(c)
    _validate_judge(c)
    _validate_prm(c)
    _validate_evaluate(c)
    _validate_benchmarks(c, "evaluate" in words(c.stages))
    _validate_draws(c)


def _validate_value(c: Config) -> None:
    if c.search.value != "rollout" and not c.search.value_model:
        raise ValueError(
            f"config.search.value_model: empty, config.search.value={c.search.value!r} wants the"
            " folder or hub name of a reward model"
        )


def _validate_judge(c: Config) -> None:
    j, sides = c.judge, (c.judge.safety, c.judge.helpfulness)
    left_out = words(j.leave_out)
    if unknown := [name for name in left_out if name not in REQUEST]:
        raise ValueError(f"config.judge.leave_out: {unknown} not in {list(REQUEST)}")
    if "remote" in sides:
        _validate_remote(j)
    if "reward_model" in sides and not j.reward_model:
        raise ValueError("config.judge.reward_model: empty, expected a folder or a hub name")
    own = j.templates == "miniature"
    if own and (c.model.checkpoint or c.data.sft != "miniature"):
        raise ValueError(
            "config.judge.templates: 'miniature' is for a model that stage 1 teaches to judge, so"
            " config.model.checkpoint must be empty and config.data.sft 'miniature'"
        )
    judged = "search" in words(c.stages) or "self-rewarding" in words(c.baselines.names)
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
    if not words(c.evaluate.search):
        raise ValueError("config.evaluate.search: empty, expected at least greedy")
    try:
        parse_all(words(c.evaluate.search))
    except ValueError as error:
        raise ValueError(f"config.evaluate.search: {error}") from None


def _validate_draws(c: Config) -> None:
    """Refuses several draws that a temperature of 0 makes the same one."""
    searches = set(parse_all(words(c.evaluate.search))) - {GREEDY}
    for section, several in (
        ("search", "search" in words(c.stages) and c.search.num_children > 1),
        ("evaluate", "evaluate" in words(c.stages) and searches),
    ):
        if several and not c[section].temperature:
            raise ValueError(
                f"config.{section}.temperature: 0 draws the same tokens each time, expected a"
                " number above 0"
            )


def _validate_benchmarks(c: Config, wanted: bool) -> None:
    e, key = c.evaluate, "config.evaluate.benchmarks"
    found, embedded = words(e.benchmarks), c.data.prompts == "miniature"
    own = [name for name in found if name not in BENCHMARKS]
    if not found:
        raise ValueError(f"{key}: empty, expected some of {list(BENCHMARKS)} or files of prompts")
    if unknown := [name for name in own if not ("/" in name or name.endswith(ROW_FILES))]:
        raise ValueError(
            f"{key}: {unknown} not in {list(BENCHMARKS)}, and no file ({', '.join(ROW_FILES)}) nor"
            " a name on the Hugging Face hub"
        )
    if not wanted:
        return
    if len(own) < len(found) and c.model.checkpoint and not embedded:
        raise ValueError(
            f"{key}: {[name for name in found if name in BENCHMARKS]} are the miniature's, which"
            f" mean nothing to {c.model.checkpoint!r} without its prompts (config.data.prompts);"
            " name a file of prompts"
        )
    if own and not c.model.checkpoint:
        raise ValueError(
            f"{key}: {own} need a model that speaks their language; set config.model.checkpoint"
        )
    if own and any(s.kind == "oracle_of" for s in parse_all(words(e.search))):
        raise ValueError(
            f"config.evaluate.search: oracle_of_N needs the truth, which is known of"
            f" {list(BENCHMARKS)} and not of {own}"
        )
    if own and e.judged and "verifier" in (c.judge.safety, c.judge.helpfulness):
        raise ValueError(
            f"config.evaluate.judged: config.judge names 'verifier', which knows nothing of {own};"
            " set it to False, or name another judge"
        )
