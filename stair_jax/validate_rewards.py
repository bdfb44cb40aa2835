"""What the settings of judges, reward model and test-time search must be. Floor 0."""

from stair_jax import redaction
from stair_jax.config import BENCHMARKS, ROW_FILES, Config, default
from stair_jax.sections import words
from stair_jax.strategies import GREEDY, parse_all

_REQUEST = ("temperature", "top_p", "max_tokens")  # what `judge.leave_out` can name


def validate_rewards(c: Config) -> None:
    """Refuses settings that cannot work or would be ignored; raises as `validate.validate`."""
    _validate_judge(c)
    _validate_value(c)
    _validate_prm(c)
    _validate_evaluate(c)
    _validate_benchmarks(c, "evaluate" in words(c.stages))


def _validate_value(c: Config) -> None:
    s, usual = c.search, default().search
    if s.value != "rollout" and not s.value_model:
        raise ValueError(
            f"config.search.value_model: empty, config.search.value={s.value!r} wants the folder or"
            " hub name of a reward model"
        )
    if s.value == "rollout" and s.value_model:
        raise ValueError(
            f"config.search.value_model: {s.value_model!r} would be ignored, it needs"
            " config.search.value=prm or mix"
        )
    if s.value != "mix" and s.value_weight != usual.value_weight:
        raise ValueError(
            f"config.search.value_weight: {s.value_weight} would be ignored, it needs"
            " config.search.value=mix"
        )
    if not 0 <= s.value_weight <= 1:
        raise ValueError(
            f"config.search.value_weight: {s.value_weight}, expected a number in [0, 1]"
        )


def _validate_judge(c: Config) -> None:
    j, sides = c.judge, (c.judge.safety, c.judge.helpfulness)
    if not (j.temperature >= 0 and 0 < j.top_p <= 1):
        raise ValueError(
            f"config.judge: temperature={j.temperature} top_p={j.top_p}; expected temperature >= 0,"
            " 0 < top_p <= 1"
        )
    for key, users in (("templates", {"self", "remote"}), ("reward_model", {"reward_model"})):
        if j[key] and not users & set(sides):
            raise ValueError(
                f"config.judge.{key}: {j[key]!r} would be ignored, it needs one of {sorted(users)}"
                " in config.judge.safety or config.judge.helpfulness"
            )
    _validate_knobs(j)
    _validate_remote(j, "remote" in sides)
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


def _validate_knobs(j: Config) -> None:
    """Refuses what no judge that is named would read."""
    usual, sides = default().judge, {j.safety, j.helpfulness}
    left_out = words(j.leave_out)
    if unknown := [name for name in left_out if name not in _REQUEST]:
        raise ValueError(f"config.judge.leave_out: {unknown} not in {list(_REQUEST)}")
    in_words = bool(sides & {"self", "remote"})
    rule, truth = j.safety == "rule", sides == {"verifier"} and j.scope == "all"
    models = "'self' or 'remote' in config.judge.safety or config.judge.helpfulness"
    for keys, holds, needed in (
        (("samples", "temperature", "top_p", "max_tokens"), in_words, models),
        (("refusal_rule",), not (rule or truth), "a config.judge.safety that asks somebody"),
        (("scope",), not (rule and j.helpfulness == "none"), "a judge beside 'rule' and 'none'"),
        (left_out, "self" in sides, "'self', for config.judge.leave_out names it"),
    ):
        for key in keys:
            if j[key] != usual[key] and not holds:
                raise ValueError(
                    f"config.judge.{key}: {j[key]!r} would be ignored, it needs {needed}"
                )


def _validate_remote(j: Config, used: bool) -> None:
    usual, address = default().judge, redaction.shown_address(j.endpoint)
    for key in ("endpoint", "model", "concurrency", "timeout", "retries", "cache", "leave_out"):
        if not used and j[key] != usual[key]:
            value = address if key == "endpoint" else j[key]
            raise ValueError(
                f"config.judge.{key}: {value!r} would be ignored, it needs 'remote' in"
                " config.judge.safety or config.judge.helpfulness"
            )
    if used:
        if not (j.model and j.endpoint.startswith(("http://", "https://"))):
            raise ValueError(
                f"config.judge: endpoint={address!r} model={j.model!r}, 'remote' needs the base URL"
                " of a server and the name of its model"
            )
        redaction.check_address("judge.endpoint", j.endpoint)
        redaction.key()  # refuses one that cannot be sent
    if not (j.concurrency >= 1 and j.timeout > 0 and j.retries >= 0):
        raise ValueError(
            f"config.judge: concurrency={j.concurrency} timeout={j.timeout} retries={j.retries};"
            " expected 1 or more, above 0, 0 or more"
        )


def _validate_prm(c: Config) -> None:
    p, usual = c.prm, default().prm
    pairs, implicit = p.loss in ("bt", "implicit"), p.loss == "implicit"
    for key, holds, needed in (
        ("min_value_gap", pairs, "bt or implicit"), ("pairs_per_tree", pairs, "bt or implicit"),
        ("full_share", pairs, "bt or implicit"), ("centering", p.loss == "bt", "bt"),
        ("beta", implicit, "implicit"), ("reference", implicit, "implicit"),
        ("sft_coef", implicit, "implicit"),
        ("visit_weights", not pairs, "bce or mse"),
    ):  # fmt: skip
        if p[key] != usual[key] and not holds:
            raise ValueError(
                f"config.prm.{key}: {p[key]!r} would be ignored, it needs config.prm.loss={needed}"
            )
    _validate_prm_numbers(c)
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


def _validate_prm_numbers(c: Config) -> None:
    p, usual = c.prm, default().prm
    numbers = (
        ("full_share", 0 <= p.full_share <= 1, "a number in [0, 1]"),
        ("eval_share", 0 <= p.eval_share < 1, "a number in [0, 1)"),
        ("samples", p.samples >= 1, "1 or more"),
        ("temperature", p.temperature > 0, "a number above 0"),
        ("beta", p.beta > 0, "a number above 0"),
        *((key, p[key] >= 0, "0 or more") for key in (
            "prompts", "pairs_per_tree", "more_layers", "centering", "sft_coef", "min_visits",
            "min_value_gap",
        )),
    )  # fmt: skip
    for key, holds, expected in numbers:
        if not holds:
            raise ValueError(f"config.prm.{key}: {p[key]!r}, expected {expected}")
    for key in ("samples", "temperature", "demonstrations"):
        if p[key] != usual[key] and not p.prompts:
            raise ValueError(
                f"config.prm.{key}: {p[key]} would be ignored, it needs a config.prm.prompts"
                " above 0"
            )


def _validate_evaluate(c: Config) -> None:
    e, usual = c.evaluate, default().evaluate
    if not words(e.search):
        raise ValueError("config.evaluate.search: empty, expected at least greedy")
    try:
        strategies = parse_all(words(e.search))
    except ValueError as error:
        raise ValueError(f"config.evaluate.search: {error}") from None
    searches = [s for s in strategies if s != GREEDY]
    for keys, holds, needed in (
        (("temperature", "top_p", "top_k", "searched"), searches, "a search beside greedy"),
        (("aggregation",), [s for s in searches if s.reads], "a search under the reward model"),
        (("lookahead",), [s for s in searches if s.kind == "lookahead"], "lookahead_WxM"),
    ):
        for key in keys:
            if e[key] != usual[key] and not holds:
                raise ValueError(
                    f"config.evaluate.{key}: {e[key]!r} would be ignored, it needs {needed} in"
                    " config.evaluate.search"
                )
    if not (e.temperature >= 0 and 0 < e.top_p <= 1 and e.top_k >= 0 and e.lookahead > 0):
        raise ValueError(
            f"config.evaluate: temperature={e.temperature} top_p={e.top_p} top_k={e.top_k}"
            f" lookahead={e.lookahead}; expected temperature >= 0, 0 < top_p <= 1, top_k >= 0,"
            " lookahead > 0"
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
    if not e.judged and not own:
        raise ValueError(
            f"config.evaluate.judged: False would be ignored, it needs files of prompts in {key}"
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
