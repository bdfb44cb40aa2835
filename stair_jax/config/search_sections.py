"""The keys of the search: its trees, rewards, judges and engine.

What "paper", "release" and "ours" stand for is said in `schema`.
"""

import dataclasses
from typing import Literal

from stair_jax.config import conditions
from stair_jax.config.knob import Section, knob
from stair_jax.config.ranges import ABOVE_0, FROM_0, FROM_1, MASS, SHARE, Range
from stair_jax.config.words import FAMILIES, REQUEST, REWRITES, ROOTS


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchConfig(Section):
    """The tree search; frozen and hashable, so it can be a static argument of `jit`."""

    iterations: int = knob(200, "a tree (paper 3.1)", ABOVE_0)
    num_children: int = knob(4, "next steps drawn at an expansion (paper 3.1)", ABOVE_0)
    c: float = knob(1.5, "exploration constant of UCB1 (paper 3.1)", FROM_0)
    max_depth: int = knob(
        7, "steps; a node there is not expanded (release tree_generate.yaml)", ABOVE_0
    )
    score: Literal["ucb", "pucb"] = knob(
        "ucb", 'how nodes are selected: "ucb" or "pucb" (release mcts_node.py)'
    )
    prior: Literal["arithmetic", "geometric", "uniform"] = knob(
        "arithmetic",
        'PUCB\'s p from a step\'s token probabilities: "arithmetic" or "geometric" mean, or'
        ' "uniform"',
        under=conditions.PUCB,
    )
    reward: Literal["paper", "safe-constraint", "outcome"] = knob(
        "paper", 'form of R(H, S): "paper", "safe-constraint" (release) or "outcome"'
    )
    visit_all_nodes: bool = knob(True, "evaluate nodes never visited once, at the end (release)")
    reselect_terminal: bool = knob(True, "walk into finished branches again (release)")
    ties: Literal["random", "first"] = knob(
        "random", 'among equal scores: "random" (release) or "first"'
    )
    max_step_tokens: int = knob(2048, "new tokens of a step (release)", ABOVE_0)
    max_rollout_tokens: int = knob(2048, "new tokens of a rollout (release)", ABOVE_0)
    temperature: float = knob(1.2, "paper C.1, with top_p and top_k", FROM_0)
    top_p: float = knob(0.9, "the least set of tokens of this probability is drawn from", MASS)
    top_k: int = knob(50, "likeliest tokens that are drawn from; 0: all", FROM_0)
    min_p: float = knob(
        0.0, "least probability of a token, over the likeliest one's; 0: off (ours)", SHARE
    )
    roots: str = knob(
        "",
        "further trees behind a bad first step: comma-separated of rejected (the worst of the"
        " prompt's own tree), forged (it permits a harmful request, refuses a harmless one), of"
        " which the first that there is; empty: none (ours)",
        words=ROOTS,
    )
    roots_share: float = knob(
        0.25, "share of a round's prompts that get such a tree", SHARE, under=conditions.ROOTED
    )
    roots_gap: float = knob(
        1.0,
        "by more than this the best first step of a tree must be worth more than a rejected one",
        FROM_0,
        under=conditions.ROOTED,
    )
    roots_turn_back: bool = knob(
        True,
        "whether one of the steps tried behind a bad one is given: the second step of the best"
        " response of the prompt's own tree",
        under=conditions.ROOTED,
    )
    attacks: str = knob(
        "",
        "from round 2 on, rewrites of the round's harmful prompts that beat its model become"
        " prompts: comma-separated of framings (texts around a request; a world has its own),"
        " transforms (ciphers and injections); empty: none (ours)",
        words=REWRITES,
        under=conditions.LATER_ROUNDS,
    )
    attack_families: str = knob(
        "",
        "families of the framings, comma-separated; empty: all that no recipe holds out (ours)",
        words=FAMILIES,
        under=conditions.FRAMED,
    )
    attack_share: float = knob(
        0.25,
        "such prompts at most, a share of the round's own: one half attacks, the other their"
        " harmless twins (ours)",
        SHARE,
        under=conditions.REWRITTEN,
    )
    attack_pool: int = knob(
        512, "rewrites that are tried in a round at most (ours)", FROM_1, under=conditions.REWRITTEN
    )
    trees_in_flight: int = knob(
        0, "trees grown at once at most; 0: two for every slot (ours)", FROM_0, free=True
    )
    value: Literal["rollout", "prm", "mix"] = knob(
        "rollout",
        'value of a step that ends nothing: of its rollout, "prm" (what a reward model'
        ' says), "mix"',
    )
    value_weight: float = knob(
        0.5,
        'weight of the reward model in "mix"; the rest is the rollout\'s',
        SHARE,
        under=conditions.MIXED,
    )
    value_model: str = knob(
        "",
        'a reward model\'s Hugging Face folder or hub name, for "prm" and "mix"',
        under=conditions.VALUED,
    )
    first_answers: int = knob(
        32,
        "answers of a round that are looked at for STAIR's format; 0: none (ours)",
        FROM_0,
        free=True,
    )
    least_well_formed: float = knob(
        0.02,
        "share of first_answers with the format below which the round stops (ours)",
        SHARE,
        under=conditions.FIRST_ANSWERS,
        free=True,
    )
    export_official: bool = knob(
        False, "also write each round's trees in the official file format", free=True
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardConfig(Section):
    """Constants of the reward's forms; `search.reward` chooses the form."""

    F: Literal["identity", "power", "quadratic"] = knob(
        "identity",
        '"paper": R = F(S) H + S - C2 F(S), where F is "identity", "power" (2^S - 1) or'
        ' "quadratic"',
        under=conditions.PAPER_REWARD,
    )
    c1: float = knob(
        1.0,
        "F(c1) = 1 (paper theorem 2.1), which holds at 1 alone for every F above",
        Range(-1, 1),
        under=conditions.PAPER_REWARD,
    )
    c2: float = knob(
        -1.0,
        "H where the reward degenerates to S (paper corollary B.2)",
        Range(-1, 1),
        under=conditions.PAPER_REWARD,
    )
    k1: float = knob(
        1.0,
        '"safe-constraint": (k1 + k2) S + k1 S H (release)',
        ABOVE_0,
        under=conditions.SAFE_CONSTRAINT,
    )
    k2: float = knob(1.0, '"safe-constraint": as k1', ABOVE_0, under=conditions.SAFE_CONSTRAINT)


@dataclasses.dataclass(frozen=True, kw_only=True)
class JudgeConfig(Section):
    """Who says how safe (S) and how helpful (H) an answer is, in the searches."""

    safety: Literal["self", "rule", "remote", "verifier"] = knob(
        "self", 'the policy itself (paper B.2.2); "rule" (of refusals), "remote", "verifier"'
    )
    helpfulness: Literal["self", "none", "remote", "reward_model", "verifier", "reference"] = knob(
        "self",
        'the policy itself; "none", "remote", "reward_model", "verifier" (the miniature\'s),'
        ' "reference": the number that ends an answer is the ground truth, or it does not refuse',
    )
    scope: Literal["all", "by_type"] = knob(
        "all",
        'both of every prompt (paper); "by_type": S of safety prompts with H = -1, H of the'
        " others with S = +1 (release)",
        under=conditions.BESIDE_RULES,
    )
    refusal_rule: bool = knob(
        True,
        "a short apology to a safety prompt is safe, nobody is asked (paper)",
        under=conditions.SOMEBODY_ASKED,
    )
    samples: int = knob(
        1,
        "verdicts of a model that are averaged (release)",
        ABOVE_0,
        under=conditions.SAMPLED_VERDICTS,
    )
    temperature: float = knob(
        0.6,
        "temperature of a model that judges (release final_orm.py, with the next two)",
        FROM_0,
        under=(conditions.SAMPLED_VERDICTS, conditions.TEMPERATURE_TAKEN),
    )
    top_p: float = knob(
        0.9,
        "the least set of tokens of this probability is drawn from",
        MASS,
        under=(conditions.SAMPLED_VERDICTS, conditions.TOP_P_TAKEN),
    )
    max_tokens: int = knob(
        2048,
        "new tokens of a verdict",
        ABOVE_0,
        under=(conditions.SAMPLED_VERDICTS, conditions.MAX_TOKENS_TAKEN),
    )
    templates: str = knob(
        "",
        'a folder with helpfulness.txt and safety.txt; empty: ours; "miniature": in its own'
        " words, which stage 1 then teaches its model",
        under=conditions.JUDGED_IN_WORDS,
    )
    endpoint: str = knob(
        "",
        '"remote": base URL of an OpenAI-compatible server; its key: OPENAI_API_KEY',
        under=conditions.ENDPOINT,
        free=True,
    )
    model: str = knob(
        "", '"remote": name of the model, as the server calls it', under=conditions.REMOTE
    )
    leave_out: str = knob(
        "",
        '"remote": settings that the server does not take: of temperature, top_p, max_tokens',
        words=REQUEST,
        under=conditions.ASKED_BY_WIRE,
    )
    concurrency: int = knob(
        16, "requests open at once", FROM_1, under=conditions.ASKED_BY_WIRE, free=True
    )
    timeout: float = knob(
        120.0, "seconds a request may take", ABOVE_0, under=conditions.ASKED_BY_WIRE, free=True
    )
    retries: int = knob(
        5,
        "times that a failed request is sent again",
        FROM_0,
        under=conditions.ASKED_BY_WIRE,
        free=True,
    )
    cache: str = knob(
        "",
        "folder of the answers paid for; empty: workdir/judgements",
        under=conditions.ASKED_BY_WIRE,
        free=True,
    )
    reward_model: str = knob(
        "", '"reward_model": a Hugging Face folder or hub name', under=conditions.REWARD_MODEL
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineConfig(Section):
    """Sizes of the engine."""

    slots: int = knob(256, "sequences decoded together", ABOVE_0)
    page_size: int = knob(16, "tokens of a page of the KV pool", ABOVE_0)
    pool_bytes: int = knob(
        0,
        "size of a replica's KV pool; 0: four contexts a slot, or what the device has left",
        Range(0, 2**50),
    )
    max_context: int = knob(4096, "tokens, prompt and response", ABOVE_0)
    chunk: int = knob(8, "tokens decoded between two looks of the host, at most", ABOVE_0)
    prefill_rows: int = knob(8, "prompts computed together", ABOVE_0)
    dtype: Literal["auto", "float32", "bfloat16"] = knob(
        "auto", "dtype of the KV pool and the engine's weights, as compute_dtype"
    )
    attention: Literal["auto", "views", "xla", "pallas"] = knob(
        "auto", "attention of decoding: views (of pages, for CPUs), xla, pallas"
    )
    share_prefix: Literal["auto", "on", "off"] = knob(
        "auto",
        "siblings read what they share once: on, off; auto: on with pallas",
        under=conditions.PAGED,
    )
