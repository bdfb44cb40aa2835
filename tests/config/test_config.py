import pytest

from stair_jax import config as config_lib
from stair_jax.config.checks import validate
from stair_jax.config.schema import (
    DpoConfig,
    EngineConfig,
    PairsConfig,
    RewardConfig,
    SearchConfig,
    TrainConfig,
)
from stair_jax.config.words import split_csv
from stair_jax.model import lora
from tests.support.configs import FILES, keys, load, tiny


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
@pytest.mark.parametrize("arg", [None, "smoke"])
def test_config_builds_and_adds_no_key(path, arg):
    c = load(path).get_config(arg)
    assert set(keys(c)) == set(keys(config_lib.default()))
    c.workdir = "somewhere"
    validate(c)
    for stage in ("sft", "dpo"):
        TrainConfig.of(c[stage].train, compute_dtype=c.model.compute_dtype)
    DpoConfig.of(c.dpo)
    SearchConfig.of(c.search)
    RewardConfig.of(c.reward)
    EngineConfig.of(c.engine)
    PairsConfig.of(c.pairs)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_smoke_is_smaller(path):
    whole, smoke = load(path).get_config(), load(path).get_config("smoke")
    assert smoke.search.iterations < whole.search.iterations
    assert smoke.engine.slots < whole.engine.slots


def test_the_paper_is_the_default():
    c = config_lib.default()
    s = c.search
    assert (s.iterations, s.num_children, s.c, s.temperature, s.top_p, s.top_k) == (
        200,
        4,
        1.5,
        1.2,
        0.9,
        50,
    )
    assert (c.rounds, c.sft.train.epochs, c.dpo.train.epochs, c.dpo.sft_coef) == (3, 3, 1, 0.2)
    for stage in ("sft", "dpo"):
        t = c[stage].train
        assert (t.batch, t.weight_decay, t.warmup_ratio) == (128, 0, 0.1)


def test_unknown_argument_is_refused():
    with pytest.raises(ValueError, match="smokee"):
        config_lib.parse_arg("smokee", smoke=False)
    assert config_lib.parse_arg("n=3,smoke", n=1, smoke=False).to_dict() == {"n": 3, "smoke": True}


def test_words_are_split_and_stripped():
    assert split_csv(" sft, dpo,,") == ("sft", "dpo")


def test_a_missing_or_extra_key_of_a_section_is_a_type_error():
    c = config_lib.default()
    with pytest.raises(TypeError, match="compute_dtype"):
        TrainConfig.of(c.sft.train)
    with pytest.raises(TypeError, match="colour"):
        DpoConfig.of(c.dpo, colour="red")


BAD = [
    ({"workdir": None}, r"config\.workdir: not set"),
    ({"workdir": "None"}, r"config\.workdir: not set"),
    ({"stages": "sft,serch"}, r"config\.stages: \['serch'\] not in"),
    ({"stages": ""}, r"config\.stages: empty"),
    ({"search__score": "uct"}, r"config\.search\.score: 'uct' is not one of"),
    ({"judge__safety": "oracle"}, r"config\.judge\.safety"),
    ({"search__iterations": 0}, r"config\.search\.iterations: 0, expected a number above 0"),
    ({"search__top_p": 0.0}, r"config\.search\.top_p: 0\.0, expected a number in \(0, 1\]"),
    ({"search__temperature": -1.0}, r"config\.search\.temperature: -1\.0, expected 0 or more"),
    ({"search__min_p": 1.5}, r"config\.search\.min_p: 1\.5, expected a number in \[0, 1\]"),
    ({"search__trees_in_flight": -1}, r"config\.search\.trees_in_flight: -1, expected 0 or more"),
    ({"engine__attention": "flash"}, r"config\.engine\.attention: 'flash' is not one of"),
    ({"engine__share_prefix": "yes"}, r"config\.engine\.share_prefix"),
    (
        {"engine__share_prefix": "on", "engine__attention": "views"},
        r"config\.engine\.share_prefix: 'on' would be ignored",
    ),
    ({"profile": True, "stages": "sft"}, r"config\.profile: True would be ignored"),
    ({"reward__F": "cubic"}, r"config\.reward\.F"),
    (
        {"reward__k1": 2.0},
        r"config\.reward\.k1: 2\.0 would be ignored, it needs",
    ),
    (
        {"reward__c2": 0.0, "search__reward": "outcome"},
        r"config\.reward\.c2: 0\.0 would be ignored",
    ),
    ({"search__prior": "uniform"}, r"config\.search\.prior: 'uniform' would be ignored"),
    ({"pairs__max_good_bad_ratio": 2}, r"config\.pairs\.max_good_bad_ratio: 2 would be ignored"),
    ({"engine__dtype": "int8"}, r"config\.engine\.dtype"),
    ({"engine__slots": -1}, r"config\.engine\.slots"),
    ({"mesh__shape": (1, 2)}, r"config\.mesh\.shape"),
    ({"sft__train__micro_tokens": 0}, r"config\.sft\.train\.micro_tokens: 0, expected a number"),
    ({"sft__train__batching": "tree"}, r"config\.sft\.train\.batching: 'tree' is not one of"),
    ({"dpo__train__remat": "some"}, r"remat: 'some' is not one of \['none', 'attention', "),
    ({"dpo__train__result": "best"}, r"config\.dpo\.train\.result: 'best' .* eval_rows above 0"),
    ({"sft__train__param_dtype": "bfloat16", "sft__train__lr": 1e-6}, r"at 5e-7 .* 0\.4 %"),
    (
        {"dpo__loss": "ipo", "dpo__label_smoothing": 0.1},
        r"config\.dpo\.label_smoothing: 0\.1 would be ignored, it needs config\.dpo\.loss=sig",
    ),
    ({"dpo__train__buckets": (9, 3)}, r"config\.dpo\.train\.buckets"),
    ({"dpo__train__warmup_ratio": 2.0}, r"config\.dpo\.train"),
    ({"dpo__beta": 0.0}, r"config\.dpo\.beta"),
    ({"sft__train__lora_rank": -1}, r"config\.sft\.train\.lora_rank: -1, expected 0 or more"),
    (
        {"dpo__train__lora_alpha": 8.0},
        r"config\.dpo\.train\.lora_alpha: 8\.0 would be ignored, it needs a .*lora_rank above 0",
    ),
    (
        {"sft__train__lora_targets": "q,v"},
        r"config\.sft\.train\.lora_targets: 'q,v' would be ignored, it needs a .*lora_rank",
    ),
    (
        {"sft__train__lora_targets": "q,qkv", "sft__train__lora_rank": 4},
        r"lora_targets: 'q,qkv', expected some of q,k,v,o,gate,up,down",
    ),
    (
        {"sft__train__lora_targets": "", "sft__train__lora_rank": 4},
        r"lora_targets: '', expected some of q,k,v,o,gate,up,down",
    ),
    (
        {"sft__train__lora_alpha": 0.0, "sft__train__lora_rank": 4},
        r"config\.sft\.train\.lora_alpha: 0\.0, expected a number above 0",
    ),
    ({"dpo__reference": "lora_base"}, r"config\.dpo\.reference: 'lora_base' .* it needs a config"),
    (
        {"dpo__reference": "on_the_fly", "dpo__train__lora_rank": 4},
        r"config\.dpo\.reference: 'on_the_fly' with lora_rank=4 .* expected 'lora_base'",
    ),
    ({"data__sft_rows": 0}, r"config\.data\.sft_rows: 0, the miniature needs"),
    ({"data__round_prompts": 0}, r"config\.data\.round_prompts: 0, the miniature needs"),
    ({"data__prompts": "mine.json"}, r"config\.data\.prompts: 'mine\.json' needs a model"),
    ({"evaluate__search": "greedy,foo"}, r"config\.evaluate\.search: 'foo' is none of greedy"),
    ({"export__dtype": "float64"}, r"config\.export\.dtype"),
    ({"model__template": "alpaca"}, r"config\.model\.template"),
]


@pytest.mark.parametrize(("changes", "message"), BAD, ids=lambda x: str(x)[:40])
def test_a_bad_setting_is_refused_in_one_line_that_names_it(changes, message):
    validate(tiny())
    with pytest.raises(ValueError, match=message) as error:
        validate(tiny(**changes))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"reward__k1": 2.0, "search__reward": "safe-constraint"},
        {"reward__c2": 0.0, "pairs__good_value_helpfulness": 1.5},
        {"search__prior": "uniform", "search__score": "pucb"},
        {"pairs__max_good_bad_ratio": 2, "pairs__terminal_only": True, "pairs__min_visits": 4},
        {"dpo__reference": "lora_base", "dpo__train__lora_rank": 4},
        {"dpo__reference": "precomputed", "dpo__train__lora_rank": 4},
        {"dpo__train__lora_alpha": 8.0, "dpo__train__lora_rank": 4},
        {"sft__train__lora_targets": "v, q", "sft__train__lora_rank": 4},
    ],
)
def test_a_setting_counts_under_the_one_that_it_needs(changes):
    validate(tiny(**changes))


def test_every_target_of_an_adapter_is_the_default():
    assert split_csv(config_lib.default().sft.train.lora_targets) == tuple(lora.TARGETS)


def test_the_verifier_knows_the_miniature_only():
    c = tiny(data__prompts="mine.json", model__checkpoint="x", stages="search")
    with pytest.raises(ValueError, match="'verifier' knows"):
        validate(c)
