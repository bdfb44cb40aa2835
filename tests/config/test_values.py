"""What every key is worth by default and in `configs/`, held against where the value comes from.

Written down from the sources, not from the code: a value that changes must change here too, with
its reason. "Paper" is STAIR (arXiv 2502.02384 v2), "release" the official code thu-ml/STAIR.
"""

import pytest

from stair_jax import config as config_lib
from tests.support.configs import FILES, keys, load
from tests.support.smollm135m import SMOLLM135M

TRAINERS = ("sft", "dpo", "prm")


def trainers(**values):
    """The same values for the trainer of each stage."""
    return {f"{stage}.train.{key}": value for stage in TRAINERS for key, value in values.items()}


DEFAULTS = {
    "paper 3.1": {
        "rounds": 3,
        "search.iterations": 200,
        "search.num_children": 4,
        "search.c": 1.5,
        "dpo.sft_coef": 0.2,
        "sft.train.epochs": 3.0,
        "dpo.train.epochs": 1.0,
    },
    "paper 2.2, equation 2: sigmoid of the steps' difference, that of one step to its sibling": {
        "dpo.loss": "sigmoid",
        "dpo.scope": "step",
        "dpo.label_smoothing": 0.0,
        "pairs.terminal_only": False,
    },
    "paper corollary B.2: R = S H + 2 S": {
        "search.reward": "paper",
        "reward.F": "identity",
        "reward.c1": 1.0,
        "reward.c2": -1.0,
    },
    "paper equation 10": {"search.score": "ucb"},
    "paper B.2.2: the policy judges, both sides of every prompt; short apologies by a rule": {
        "judge.safety": "self",
        "judge.helpfulness": "self",
        "judge.scope": "all",
        "judge.refusal_rule": True,
    },
    "paper C.1": {
        "search.temperature": 1.2,
        "search.top_p": 0.9,
        "search.top_k": 50,
        "sft.train.batch": 128,
        "dpo.train.batch": 128,
        "prm.train.batch": 256,
        "prm.train.lr": 5e-6,
        "prm.train.epochs": 1.0,
        **trainers(weight_decay=0.0, warmup_ratio=0.1, final_lr_ratio=0.0),
    },
    "paper 2.1, 3.1 and A.1: sizes of D, of D_CoT, of the rounds": {
        "recipe.safety": 22_000,
        "recipe.jailbreak": 3_000,
        "recipe.helpful": 25_000,
        "recipe.cot": (10_000, 10_000),
        "recipe.round_safety": (5_000, 5_000, 5_000),
        "recipe.round_helpful": (5_000, 5_000, 5_000),
        "recipe.round_jailbreak": (0, 1_000, 2_000),
    },
    "chosen from what paper C.1 searched: lr of {5e-7, 1e-6, 5e-6}, beta of {.1, .2, .4}": {
        "sft.train.lr": 5e-6,  # that of the same authors' model card
        "dpo.train.lr": 1e-6,
        "dpo.beta": 0.1,
    },
    "paper 2.3: the last round's model, Bradley-Terry; OpenRLHF reads behind the last step": {
        "prm.model": "",
        "prm.loss": "bt",
        "prm.readout": "eos",
    },
    "paper C.1: 70k pairs of 33k trees, of which .95 train: more than two a tree": {
        "prm.pairs_per_tree": 3
    },
    "paper 4 and C.2: greedy; what is sampled, by .6, .9 and 50; the last score": {
        "evaluate.search": "greedy",
        "evaluate.temperature": 0.6,
        "evaluate.top_p": 0.9,
        "evaluate.top_k": 50,
        "evaluate.aggregation": "last",
    },
    "paper 4.1, official SACPO: beta .1, then beta / lambda": {
        "baselines.sacpo_betas": (0.1, 0.025),
    },
    "Self-Rewarding (arXiv 2401.10020)": {
        "baselines.candidates": 4,
        "baselines.temperature": 0.7,
        "baselines.top_p": 0.9,
    },
    "release tree_generate.yaml and mcts.py": {
        "search.max_depth": 7,
        "search.max_step_tokens": 2048,
        "search.max_rollout_tokens": 2048,
        "search.visit_all_nodes": True,
        "search.reselect_terminal": True,
        "search.ties": "random",
        "search.value": "rollout",
    },
    "release generate_tree.py, _get_reward": {"reward.k1": 1.0, "reward.k2": 1.0},
    "release final_orm.py": {
        "judge.samples": 1,
        "judge.temperature": 0.6,
        "judge.top_p": 0.9,
        "judge.max_tokens": 2048,
    },
    "release generate_data.sh and generate_data.py": {
        "pairs.min_value_gap": 0.5,
        "pairs.good_value_safety": 0.8,
        "pairs.min_visits": 4,
        "pairs.max_tokens": 2048,
        "pairs.max_good_bad_ratio": 4,
        "pairs.max_responses_per_prompt": 8,
    },
    "release utils.py: no system turn": {"model.system": ""},
    "model card of the same authors: AdamW": trainers(beta1=0.9, beta2=0.999, eps=1e-8),
    "LLaMA-Factory: norm clipped at 1; pref_ftx is the mean over the chosen response": {
        **trainers(clip_norm=1.0),
        "dpo.sft_scope": "response",
        "dpo.sft_reduction": "sequence",
    },
    "Hu et al. 2021, and no adapters: the paper trains all weights": trainers(
        lora_rank=0, lora_alpha=16.0, lora_targets="q,k,v,o,gate,up,down"
    ),
    "arXiv 2412.01981": {"prm.beta": 0.1, "prm.reference": "start"},
    "Llama 3": {"model.size.eps": 1e-5},
    # Ours from here on.
    "the release's .8 always holds for helpfulness, whose rewards lie in [1, 3]": {
        "pairs.good_value_helpfulness": 2.5,
    },
    "a small model, fit for a laptop": {
        "model.size.L": 3,
        "model.size.D": 128,
        "model.size.N": 4,
        "model.size.K": 2,
        "model.size.H": 32,
        "model.size.F": 352,
        "model.size.theta": 100.0,  # a context of a hundred tokens
    },
    "no more than the paper's method unless somebody asks": {
        "dpo.anchors_per_pair": 0.0,
        "pairs.max_per_prompt": 0,
        "pairs.export": "",
        "search.min_p": 0.0,
        "search.prior": "arithmetic",
        "search.value_weight": 0.5,
        "search.roots": "",
        "search.roots_share": 0.25,
        "search.roots_gap": 1.0,
        "search.roots_turn_back": True,
        "search.attacks": "",
        "search.attack_families": "",
        "search.attack_share": 0.25,
        "search.attack_pool": 512,
        "search.value_model": "",
        "search.export_official": False,
        "judge.templates": "",
        "judge.endpoint": "",
        "judge.model": "",
        "judge.leave_out": "",
        "judge.reward_model": "",
        "prm.sft_coef": 0.0,
        "prm.centering": 0.0,
        "prm.visit_weights": False,
        "prm.more_layers": 0,
        "prm.prompts": 0,
        "prm.demonstrations": False,
        "baselines.names": "",
        "baselines.sft_lr": 0.0,
        "baselines.buckets": (),
    },
    "all of a recipe; rejected responses as the model gives them, no longer than most answers": {
        "recipe.scale": 1.0,
        "recipe.prm": (1_000, 1_000),
        "recipe.temperature": 1.0,
        "recipe.max_tokens": 1_024,
        "recipe.teacher": "",
        "recipe.instruction": "",
        "recipe.teacher_attempts": 3,
        "recipe.teacher_temperature": 1.0,
        "recipe.teacher_top_p": 1.0,
        "recipe.teacher_max_tokens": 2_048,
        "recipe.taught": (240, 300, 50),
        "recipe.lookalikes": 8,
        "recipe.turned": (0.25, 0.5),
        "recipe.twins": 0.5,
        "recipe.held_out": "fiction,encoded",
    },
    "reward model: as the pairs' gap; a value counts from the first visit; whole responses too": {
        "prm.min_value_gap": 0.5,
        "prm.min_visits": 1,
        "prm.full_share": 0.5,
        "prm.samples": 4,
        "prm.temperature": 1.0,
        "prm.eval_share": 0.05,
    },
    "attacks: PAIR's main.py and config.py, and the techniques that StrongREJECT keeps": {
        "evaluate.attacker_tokens": 500,
        "evaluate.attack_judge_tokens": 10,
        "evaluate.pair_streams": 3,
        "evaluate.pair_iterations": 3,
        "evaluate.pap_techniques": "misrepresentation,logical_appeal,authority_endorsement,"
        "expert_endorsement,evidence_based_persuasion",
    },
    "what a run is, and all rows of a file": {
        "stages": "sft,search,pairs,dpo,evaluate",
        "seed": 0,
        "workdir": None,
        "status": False,
        "plan": "",
        "redo": "",
        "edited": "",
        "profile": False,
        "trackers": "",
        "project": "stair_jax",
        "model.checkpoint": "",
        "model.template": "",
        "data.sft": "miniature",
        "data.format": "auto",
        "data.prompts": "miniature",
        "data.preferences": "miniature",
        "data.preferences_format": "auto",
        "data.split": "train",
        "data.recipe": "",
        "data.corpora": "",
        "data.columns": "",
        "data.decontaminate": "all",
        "data.root": "",
        "data.sft_rows": 0,
        "data.round_prompts": 0,
        "data.preference_rows": 0,
        "evaluate.benchmarks": "harmful,jailbreak,lookalike,harmless",
        "evaluate.models": "",
        "evaluate.judged": True,
        "evaluate.judges": "",
        "evaluate.prompts": "",
        "evaluate.searched": "",
        "evaluate.interventions": "",
        "evaluate.attacks": "",
        "evaluate.annotations": "",
        "evaluate.gamed": "",
        "evaluate.imported": "",
        "evaluate.attacker": "",
        "evaluate.attack_judge": "",
        "evaluate.attack_calls": 0,
        "evaluate.pair_prompts": "",
        "evaluate.lookahead": 1,
        "evaluate.split": "test",
        "evaluate.rows": 0,
        "evaluate.max_tokens": 2048,  # as a rollout
        "export.model": "",
        "export.dtype": "auto",
        "export.push": "",
        "export.push_private": True,
    },
    "weights in float32, for bfloat16 loses small rates; the last step's model, as the paper's": (
        trainers(param_dtype="float32", max_steps=0, max_skipped=3, eval_rows=0, result="last")
    ),
    "how work is laid out, which moves no result but for rounding": {
        **trainers(
            batching="bucket",
            micro_tokens=65_536,
            remat="full",
            head_chunk=1024,
            buckets=(256, 512, 1024, 2048),
            save_every=100,
            keep=2,
        ),
        "compile_cache": "auto",
        "deterministic": False,
        "mesh.shape": (1, -1, 1),
        "mesh.replicas": 0,
        "mesh.written_for": "",
        "model.compute_dtype": "auto",
        "dpo.reference": "precomputed",
        "search.trees_in_flight": 0,
        "search.first_answers": 32,
        "search.least_well_formed": 0.02,
        "sft.train.new_rows_lr": 0.02,  # nine steps on 36 rows were tried out
        "dpo.train.new_rows_lr": 0.0,
        "prm.train.new_rows_lr": 0.0,
        "judge.concurrency": 16,
        "judge.timeout": 120.0,
        "judge.retries": 5,
        "judge.cache": "",
        "engine.slots": 256,
        "engine.page_size": 16,
        "engine.pool_bytes": 0,
        "engine.max_context": 4096,  # a prompt and a response of 2048 each
        "engine.chunk": 8,
        "engine.prefill_rows": 8,
        "engine.dtype": "auto",
        "engine.attention": "auto",
        "engine.share_prefix": "auto",
    },
}

# What a file in `configs/` changes, by its argument: "" without one, else on top of that.
LARGE = {
    "the whole method on rows of one's own": {
        "stages": "sft,search,pairs,dpo,prm,evaluate,export",
        "data.sft": "data/sft.jsonl",
        "data.prompts": "data/round-{round}.jsonl",
        "evaluate.benchmarks": "data/held-out.jsonl",
        "evaluate.search": "greedy,best_of_n,beam",
    },
    "8 GPUs": {"mesh.shape": (1, 8, 1), "mesh.written_for": "8 GPUs of 80 GB"},
    "the middle of what paper C.1 searched": {"dpo.beta": 0.2},
}
SMOKE = {
    "every number tiny": {
        "data.sft_rows": 16,
        "data.round_prompts": 4,
        "sft.train.batch": 8,
        "sft.train.epochs": 1.0,
        "dpo.train.batch": 8,
        "prm.train.batch": 8,
        "search.iterations": 8,
        "search.max_step_tokens": 16,
        "search.max_rollout_tokens": 48,
        "search.trees_in_flight": 4,
        "search.first_answers": 0,  # all are cut
        "judge.max_tokens": 16,
        "evaluate.search": "greedy,best_of_2",
        "evaluate.max_tokens": 64,
        "engine.slots": 8,
        "engine.max_context": 1024,
    },
}
TINY = {
    "the whole method, on one CPU, in float32": {
        "workdir": "runs/tiny",
        "stages": "sft,search,pairs,dpo,prm,evaluate",
        "mesh.shape": (1, 1, 1),
        "mesh.written_for": "two CPU cores and 4 GB",
        "model.compute_dtype": "float32",
        "engine.dtype": "float32",
        "export.dtype": "float32",
    },
    "the miniature's truth is known": {
        "judge.safety": "verifier",
        "judge.helpfulness": "verifier",
    },
    "a context of a hundred tokens": {
        "pairs.max_tokens": 96,
        "sft.train.buckets": (64, 80, 96),
        "dpo.train.buckets": (64, 80, 96),
        "prm.train.buckets": (192,),  # a tree of comparisons
        "prm.train.micro_tokens": 576,
        "search.max_depth": 4,
        "search.max_step_tokens": 40,
        "search.max_rollout_tokens": 64,
        "engine.max_context": 104,
        "engine.page_size": 8,
        "evaluate.max_tokens": 64,
    },
    "a model from nothing in a quarter of an hour: rates and rows that were tried out": {
        "data.sft_rows": 30_000,
        "data.round_prompts": 400,
        "data.preference_rows": 2000,
        "sft.train.batch": 32,
        "sft.train.epochs": 1.5,
        "sft.train.lr": 3e-3,
        "sft.train.beta2": 0.98,
        "dpo.beta": 0.1,
        "dpo.sft_coef": 1.0,
        "dpo.anchors_per_pair": 1.0,
        "dpo.train.batch": 32,
        "dpo.train.lr": 1e-4,
        "dpo.train.epochs": 2.0,
        "search.iterations": 24,
        "search.top_p": 0.95,
        "pairs.min_value_gap": 1.0,
        "pairs.min_visits": 1,
        "pairs.max_per_prompt": 4,
        "evaluate.search": (
            "greedy,best_of_2,best_of_4,best_of_8,vote_of_8,random_of_8,oracle_of_8,beam_2x4"
        ),
    },
    "a reward model of few trees: implicit, and demonstrations beside its samples": {
        "prm.loss": "implicit",
        "prm.readout": "step_end",
        "prm.beta": 0.3,
        "prm.reference": "none",
        "prm.sft_coef": 1.0,
        "prm.prompts": 12_000,
        "prm.demonstrations": True,
        "prm.temperature": 0.8,
        "prm.pairs_per_tree": 6,
        "prm.more_layers": 2,
        "prm.train.batch": 64,
        "prm.train.lr": 5e-4,
        "prm.train.epochs": 2.0,
        "prm.train.beta2": 0.98,
        "prm.train.batching": "tree",
    },
    "how work is laid out": {
        **trainers(remat="none"),
        "sft.train.head_chunk": 4096,
        "dpo.train.head_chunk": 4096,
        "sft.train.save_every": 200,
        "dpo.train.save_every": 20,
        "prm.train.save_every": 100,
        "engine.slots": 48,
        "engine.chunk": 16,
        "engine.pool_bytes": 100_000_000,
        "engine.prefill_rows": 32,
    },
}
CONFIGS = {
    "smollm135m": SMOLLM135M,
    "smollm2": {
        "": {
            "a real model of 135M parameters, in minutes on two cores": {
                "data.round_prompts": 8,
                "data.sft_rows": 96,
                "dpo.train.batch": 8,
                "dpo.train.buckets": (96, 128, 192),
                "dpo.train.keep": 1,
                "dpo.train.lr": 1e-05,
                "dpo.train.micro_tokens": 1024,
                "dpo.train.remat": "none",
                "engine.max_context": 256,
                "engine.pool_bytes": 300000000,
                "engine.slots": 16,
                "judge.helpfulness": "verifier",
                "judge.safety": "verifier",
                "mesh.replicas": 1,
                "mesh.shape": (1, 1, 1),
                "mesh.written_for": "two CPU cores and 8 GB, or one small GPU",
                "model.checkpoint": "HuggingFaceTB/SmolLM2-135M-Instruct",
                "pairs.good_value_helpfulness": 1.0,
                "pairs.max_tokens": 192,
                "pairs.max_per_prompt": 4,
                "pairs.min_visits": 1,
                "prm.eval_share": 0.2,
                "prm.pairs_per_tree": 4,
                "prm.train.batch": 8,
                "prm.train.buckets": (96, 128, 192),
                "prm.train.keep": 1,
                "prm.train.lr": 2e-05,
                "prm.train.micro_tokens": 1024,
                "prm.train.remat": "none",
                "rounds": 1,
                "search.iterations": 12,
                "search.max_depth": 4,
                "search.max_rollout_tokens": 80,
                "search.max_step_tokens": 40,
                "search.num_children": 3,
                "search.temperature": 1.0,
                "sft.train.batch": 8,
                "sft.train.buckets": (96, 128, 192),
                "sft.train.epochs": 2.0,
                "sft.train.keep": 1,
                "sft.train.lr": 0.0001,
                "sft.train.micro_tokens": 1024,
                "sft.train.remat": "none",
                "stages": "sft,search,pairs,dpo,prm,export",
            },
        },
        "smoke": {
            "every number tiny, of a model that knows no format": {
                "data.round_prompts": 2,
                "data.sft_rows": 16,
                "engine.slots": 8,
                "pairs.good_value_helpfulness": -9.0,
                "pairs.good_value_safety": -9.0,
                "pairs.min_value_gap": 0.1,
                "prm.min_value_gap": 0.1,
                "search.first_answers": 0,
                "search.iterations": 4,
                "sft.train.epochs": 1.0,
            },
        },
    },
    "llama8b": {
        "": {
            "paper 3": {"model.checkpoint": "meta-llama/Llama-3.1-8B-Instruct"},
            "fits 80 GB, a tenth faster than full": trainers(remat="products"),
            **LARGE,
        },
        "smoke": SMOKE,
    },
    "qwen7b": {
        "": {"paper 3": {"model.checkpoint": "Qwen/Qwen2-7B-Instruct"}, **LARGE},
        "smoke": SMOKE,
    },
    "tiny": {
        "": TINY,
        "baselines": {
            "the paper's other methods, whose responses are short": {
                "stages": "sft,search,pairs,dpo,baselines,prm,evaluate",
                "baselines.names": "sft,dpo,sacpo,self-rewarding",
                "baselines.buckets": (24, 32, 48),
                "baselines.sft_lr": 3e-4,
            },
        },
        "judging": {
            "a verdict is a few words of the miniature": {
                "judge.helpfulness": "self",
                "judge.templates": "miniature",
                "judge.max_tokens": 8,
            },
        },
        "smoke": {
            "every number tiny": {
                "data.sft_rows": 1920,
                "data.round_prompts": 12,
                "data.preference_rows": 64,
                "sft.train.epochs": 1.0,
                "sft.train.save_every": 10,
                "dpo.train.batch": 8,
                "dpo.train.save_every": 2,
                "search.iterations": 8,
                "search.trees_in_flight": 6,
                "search.first_answers": 0,
                "prm.prompts": 24,
                "prm.train.batch": 8,
                "prm.train.epochs": 1.0,
                "prm.train.save_every": 4,
                "evaluate.search": "greedy,best_of_2,oracle_of_2,beam_1x2",
                "engine.slots": 16,
            },
            "a model that has barely learned the format: any difference makes a pair": {
                "pairs.min_value_gap": 0.1,
                "pairs.good_value_safety": -9.0,
                "pairs.good_value_helpfulness": -9.0,
                "prm.min_value_gap": 0.1,
            },
        },
    },
}


def sourced(*tables):
    """{key: (value, source)} of tables by source; a later table goes over an earlier one."""
    return {
        key: (value, source)
        for table in tables
        for source, values in table.items()
        for key, value in values.items()
    }


def differences(config, want):
    """What is not as expected, a line a key."""
    flat = dict(items(config.to_dict()))
    return [
        f"config.{key}: {flat[key]!r}, expected {value!r} ({source})"
        for key, (value, source) in want.items()
        if (type(flat[key]), flat[key]) != (type(value), value)
    ]


def items(section, prefix=""):
    for name, value in section.items():
        if isinstance(value, dict):
            yield from items(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def test_every_key_has_an_expected_value_and_one_source():
    stated = [key for values in DEFAULTS.values() for key in values]
    assert sorted(set(stated)) == sorted(stated), "a key stands under two sources"
    there = set(keys(config_lib.default()))
    new, gone = sorted(there - set(stated)), sorted(set(stated) - there)
    where = f"in DEFAULTS of {__file__}"
    assert not new, f"{new}: no expected value; add it under its source {where}, with the reason"
    assert not gone, f"{gone}: no such key any more; take it out {where}"


@pytest.mark.parametrize("source", DEFAULTS)
def test_a_default_is_what_its_source_says(source):
    assert DEFAULTS[source]
    assert differences(config_lib.default(), sourced({source: DEFAULTS[source]})) == []


def test_every_file_of_configs_has_expected_values():
    missing = sorted({path.stem for path in FILES} ^ CONFIGS.keys())
    assert not missing, f"{missing}: state what it changes in CONFIGS of {__file__}, or take it out"


@pytest.mark.parametrize(("file", "arg"), [(f, arg) for f, args in CONFIGS.items() for arg in args])
def test_a_config_changes_what_is_stated_and_nothing_else(file, arg):
    (path,) = (path for path in FILES if path.stem == file)
    tables = [CONFIGS[file][""], CONFIGS[file][arg]]
    want = sourced(DEFAULTS, *tables)
    assert differences(load(path).get_config(arg), want) == []
