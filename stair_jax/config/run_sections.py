"""The keys of a run as a whole: stages, devices, model, data, and what comes out of it.

What "paper", "release" and "ours" stand for is said in `schema`.
"""

import dataclasses
from typing import Literal

from stair_jax.config import conditions
from stair_jax.config.knob import Section, knob
from stair_jax.config.ranges import ABOVE_0, FROM_0, FROM_1, MASS, Range
from stair_jax.config.stages import NAMES
from stair_jax.config.words import ATTACKS, INTERVENTIONS, PAP_TECHNIQUES, TRACKERS


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig(Section):
    """The run as a whole: keys without a section."""

    stages: str = knob(
        "sft,search,pairs,dpo,evaluate",
        "comma-separated, run in the order of STAGES",
        words=NAMES,
        free=True,
    )
    seed: int = knob(
        0,
        "draws, sampling, initial weights; the test split does not move with it",
        Range(0, 2_000_000_000),
    )
    workdir: str | None = knob(None, "where everything of this run lies", free=True)
    rounds: int = knob(3, "K of self-improvement (paper 3.1)", Range(1, 100), free=True)
    status: bool = knob(False, "print what is done and what is left, and stop", free=True)
    plan: str = knob(
        "",
        "machine that the run is planned for, and not run: CHIPxM or CHIPxNxM for N hosts of M, as"
        " a800x8 (a100, a800, h100, h200; cpu)",
        free=True,
    )
    redo: str = knob(
        "",
        "comma-separated artefacts or stages: dropped first, with all that came from them",
        free=True,
    )
    edited: str = knob(
        "", "comma-separated artefacts whose rows were changed by hand, and are taken so", free=True
    )
    profile: bool = knob(
        False,
        "trace some of the search into workdir/profile, for TensorBoard or Perfetto",
        under=conditions.WITH_SEARCH,
        free=True,
    )
    compile_cache: str = knob(
        "auto",
        "folder of compiled programs, read at the next start; empty: none; auto: the user's cache"
        " on a GPU, none on a CPU (for a folder there saves minutes with large models, but programs"
        " may not run on another CPU)",
        free=True,
    )
    deterministic: bool = knob(
        False, "on a GPU: nothing added up by atomics; its cost: `xla_flags.py`", free=True
    )
    trackers: str = knob(
        "",
        "beside metrics.jsonl: comma-separated of tensorboard, wandb, trackio",
        words=TRACKERS,
        free=True,
    )
    project: str = knob(
        "stair_jax",
        "project that wandb and trackio file the run under",
        under=conditions.TRACKED,
        free=True,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig(Section):
    """The devices, and how work lies on them."""

    shape: tuple[int, ...] = knob(
        (1, -1, 1), "devices along data, fsdp, tensor; -1 takes what is left", free=True
    )
    replicas: int = knob(
        0,
        "replicas of the engine; 0: one a place on data x fsdp, and on a CPU one a core",
        FROM_0,
        free=True,
    )
    written_for: str = knob(
        "", "the machine that a file's values were chosen for, said at the start", free=True
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig(Section):
    """The model that everything starts from."""

    checkpoint: str = knob("", "a Hugging Face folder or hub name; empty: random weights of `size`")
    template: Literal["", "llama3", "chatml"] = knob(
        "", 'chat template: "llama3", "chatml"; empty: that of the checkpoint\'s family'
    )
    system: str = knob("", "text of a system turn; the method has none (release utils.py)")
    compute_dtype: Literal["auto", "float32", "bfloat16"] = knob(
        "auto", 'dtype of activations: "float32", "bfloat16"; auto: by the device'
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SizeConfig(Section):
    """Sizes of random weights, where `model.checkpoint` is empty."""

    L: int = knob(3, "layers", FROM_1, under=conditions.RANDOM_WEIGHTS)
    D: int = knob(128, "model width", FROM_1, under=conditions.RANDOM_WEIGHTS)
    N: int = knob(4, "query heads", FROM_1, under=conditions.RANDOM_WEIGHTS)
    K: int = knob(2, "key/value heads", FROM_1, under=conditions.RANDOM_WEIGHTS)
    H: int = knob(32, "head dim", FROM_1, under=conditions.RANDOM_WEIGHTS)
    F: int = knob(352, "feed-forward width", FROM_1, under=conditions.RANDOM_WEIGHTS)
    eps: float = knob(1e-05, "RMSNorm (Llama 3)", MASS, under=conditions.RANDOM_WEIGHTS)
    theta: float = knob(
        100.0,
        "RoPE base, for contexts of a hundred tokens (ours)",
        ABOVE_0,
        under=conditions.RANDOM_WEIGHTS,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig(Section):
    """Rows and prompts that come from outside."""

    sft: str = knob(
        "miniature",
        "rows of stage 1: the miniature's, a .json, .jsonl, .parquet or .csv file, or a name on"
        " the Hugging Face hub; prepared: those of stage prepare",
    )
    format: Literal["auto", "ours", "alpaca", "sharegpt", "openai"] = knob(
        "auto",
        "form of these rows: ours, alpaca, sharegpt, openai; auto: by their columns",
        under=conditions.SFT_FILE,
    )
    prompts: str = knob(
        "miniature",
        'what trees are grown on: the miniature\'s, or a file or hub name of {"question",'
        ' "type"} rows; the word {round} in the name gives each round a file of its own,'
        " else every round uses all rows; prepared: those of stage prepare",
    )
    preferences: str = knob(
        "miniature",
        "what the baselines learn from: the miniature's, or a file or hub name, or prepared, as"
        " data.sft",
    )
    preferences_format: Literal["auto", "pairs", "explicit", "implicit", "sharegpt", "alpaca"] = (
        knob(
            "auto",
            "form of these rows: pairs (ours), explicit, implicit (prompts, as TRL has them),"
            " sharegpt, alpaca (rankings, as LLaMA-Factory has them); auto: by their columns",
            under=conditions.PREFERENCE_FILE,
        )
    )
    split: str = knob("train", "split that is read of hub names", under=conditions.ON_HUB)
    recipe: str = knob(
        "", "what stage prepare makes: paper, published, own, or another file of data/recipes"
    )
    corpora: str = knob(
        "",
        "where a recipe's corpora lie: comma-separated NAME:FILE or NAME:OWNER/NAME of the hub; the"
        " others are read from data.root, else from the hub",
        under=conditions.RECIPE,
        free=True,
    )
    columns: str = knob(
        "",
        "columns of the corpus `columns`: comma-separated PART=COLUMN with the parts question,"
        " type, chosen, rejected, response, ground_truth, id; type may be safety or helpfulness",
        under=conditions.COLUMNS,
    )
    decontaminate: str = knob(
        "all",
        "benchmarks whose prompts no seed may overlap: comma-separated; all: those that data.root"
        " or the hub can give; none: nothing is compared",
        under=conditions.RECIPE,
    )
    root: str = knob(
        "",
        "folder of files of benchmarks and corpora, each where its authors have it, as"
        " xstest/xstest_prompts.csv; empty: they are read from the hub",
        under=conditions.BENCHMARK_FILES,
        free=True,
    )
    sft_rows: int = knob(0, "rows used; 0: all of a file (the miniature needs a number)", FROM_0)
    round_prompts: int = knob(0, "prompts used in a round; 0: all of a file (as above)", FROM_0)
    preference_rows: int = knob(0, "rows used; 0: all of a file (as above)", FROM_0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GuidedConfig(Section):
    """How answers are found at test time."""

    benchmarks: str = knob(
        "harmful,jailbreak,lookalike,harmless",
        "comma-separated: these are the miniature's; or names of others (gsm8k), from the hub, or"
        " gsm8k:FILE, or in the folder data.root; or files or hub names of prompts, as"
        " data.prompts",
        free=True,
    )
    models: str = knob(
        "",
        'models that are asked: "base", "sft", "dpo-1", ...; empty: all that are there',
        free=True,
    )
    judged: bool = knob(
        True,
        "whether config.judge scores the answers to prompts of files",
        under=conditions.OWN_PROMPTS,
        free=True,
    )
    judges: str = knob(
        "",
        "comma-separated models that judge published benchmarks as these prescribe, at"
        " judge.endpoint or as NAME@URL; empty: rules alone grade",
        free=True,
    )
    prompts: str = knob(
        "",
        "folder of the authors' prompts of these judges, known by their hashes; empty: our words",
        under=conditions.JUDGED_BY_MODELS,
        free=True,
    )
    annotations: str = knob(
        "",
        "file of AlpacaEval's recorded preferences (annotations.json) of this run's answers, which"
        " are in evals/MODEL/alpaca_eval_outputs.json; empty: no win rate",
        under=conditions.ALPACA_EVAL,
        free=True,
    )
    gamed: str = knob(
        "",
        "AlpacaEval's df_gamed.csv, of its data set (CC-BY-NC-4.0), for the length-controlled win"
        " rate of these annotations; empty: the raw one alone",
        under=conditions.ANNOTATED,
        free=True,
    )
    imported: str = knob(
        "",
        "comma-separated files or folders with results of other tools, which stand in the table:"
        " results_*.json of lm-eval, logs of inspect_ai (.json, .eval)",
        free=True,
    )
    search: str = knob(
        "greedy",
        "how answers are found: comma-separated of greedy; under the reward model"
        " best_of_N, vote_of_N, beam_WxM (width, successors), diverse_WxM, lookahead_WxM,"
        " mcts_N (iterations); for comparison random_of_N, oracle_of_N",
        free=True,
    )
    searched: str = knob(
        "",
        "models that more than greedy is tried on; empty: the last one",
        under=conditions.SEARCHED,
        free=True,
    )
    interventions: str = knob(
        "",
        "what is changed in the steps of greedy answers, to see whether they decide:"
        " comma-separated of cut, swap, forge; of models that reason",
        words=INTERVENTIONS,
        under=conditions.WITH_GREEDY,
        free=True,
    )
    attacks: str = knob(
        "",
        "what is done to harmful requests so that a model might comply, by its greedy answers:"
        " comma-separated of pair, pap, escalation",
        words=ATTACKS,
        under=conditions.WITH_GREEDY,
        free=True,
    )
    attacker: str = knob(
        "",
        "model that writes the prompts of pair and pap: NAME@URL, or a model of the run",
        under=conditions.BY_ATTACKER,
        free=True,
    )
    attack_judge: str = knob(
        "",
        "model that rates answers for pair: NAME@URL, or a model of the run",
        under=conditions.BY_PAIR,
        free=True,
    )
    attacker_tokens: int = knob(
        500,
        "tokens of an attacker's reply at most (PAIR config.py); more for one that reasons",
        ABOVE_0,
        under=conditions.BY_ATTACKER,
    )
    attack_judge_tokens: int = knob(
        10,
        "tokens of a rating at most (PAIR main.py); more for a judge that reasons",
        ABOVE_0,
        under=conditions.BY_PAIR,
    )
    attack_calls: int = knob(
        0,
        "calls of all models that an attack on one request may take; 0: as many as it wants",
        FROM_0,
        under=conditions.ATTACKED,
    )
    pair_streams: int = knob(
        3,
        "conversations of pair with its attacker (PAIR main.py; 30 in the paper)",
        Range(1, 1000),
        under=conditions.BY_PAIR,
    )
    pair_iterations: int = knob(
        3,
        "prompts of each of them (PAIR main.py and paper)",
        Range(1, 1000),
        under=conditions.BY_PAIR,
    )
    pair_prompts: str = knob(
        "",
        "folder of the authors' prompts of pair, known by their hashes; empty: our words",
        under=conditions.BY_PAIR,
        free=True,
    )
    pap_techniques: str = knob(
        ",".join(PAP_TECHNIQUES),
        "techniques of persuasion of pap, comma-separated (the five that StrongREJECT keeps)",
        words=PAP_TECHNIQUES,
        under=conditions.BY_PAP,
    )
    aggregation: Literal["last", "min", "mean", "product"] = knob(
        "last",
        'which of a response\'s step scores is its own: the "last", or their "min", "mean",'
        ' "product"',
        under=conditions.UNDER_REWARD_MODEL,
    )
    lookahead: int = knob(
        1, "steps that lookahead_WxM looks ahead", FROM_1, under=conditions.LOOKAHEAD
    )
    temperature: float = knob(
        0.6,
        "temperature of all but greedy (paper C.2, with top_p and top_k)",
        FROM_0,
        under=conditions.SEARCHED,
    )
    top_p: float = knob(
        0.9,
        "the least set of tokens of this probability is drawn from",
        MASS,
        under=conditions.SEARCHED,
    )
    top_k: int = knob(
        50, "likeliest tokens that are drawn from; 0: all", FROM_0, under=conditions.SEARCHED
    )
    split: Literal["test", "dev"] = knob(
        "test", 'split of the miniature\'s benchmarks; "dev" to choose settings on'
    )
    rows: int = knob(
        0,
        "prompts of each benchmark at most, the same ones for every model and seed; 0: all",
        FROM_0,
        free=True,
    )
    max_tokens: int = knob(2048, "tokens of a response at most", ABOVE_0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportConfig(Section):
    """What is written as a Hugging Face folder."""

    model: str = knob(
        "", 'model that is written: "sft", "dpo-2", ...; empty: the last finished one', free=True
    )
    dtype: Literal["auto", "float32", "bfloat16"] = knob(
        "auto", "dtype of the written weights; auto: that of model.checkpoint", free=True
    )
    push: str = knob(
        "",
        'a repository of the Hugging Face hub, "owner/name", that the export is uploaded to',
        under=conditions.EXPORTED,
        free=True,
    )
    push_private: bool = knob(
        True, "whether only its owner sees that repository", under=conditions.PUSHED, free=True
    )
