"""Every knob of the project, with its default, unit and source. Floor 0: imports no JAX.

"Paper" is STAIR (arXiv 2502.02384 v2), "release" the official code thu-ml/STAIR, "ours" a choice
of this project where neither publishes a value.
"""

from collections.abc import Mapping
from typing import Any

import ml_collections
from ml_collections.config_dict import placeholder

Config = Any  # an ml_collections.ConfigDict; type checkers cannot see its fields

ROW_FILES = (".json", ".jsonl", ".parquet")  # suffixes of files of rows
TRACKERS = ("tensorboard", "wandb", "trackio")
STAGES = ("sft", "search", "pairs", "dpo", "baselines", "prm", "evaluate", "export")
EXPORTS = ("llamafactory", "openrlhf", "trl")
BASELINES = ("sft", "dpo", "sacpo", "self-rewarding")


def default() -> Config:
    """Returns the full schema; a file in `configs/` only changes values, it never adds keys."""
    c = ml_collections.ConfigDict()
    c.stages = "sft,search,pairs,dpo,evaluate"  # comma-separated, run in the order of STAGES
    c.seed = 0  # draws, sampling, initial weights; the test split does not move with it
    c.workdir = placeholder(str)  # where everything of this run lies
    c.rounds = 3  # K of self-improvement (paper 3.1)
    c.status = False  # print what is done and what is left, and stop
    c.redo = ""  # comma-separated artefacts or stages: dropped first, with all that came from them
    c.edited = ""  # comma-separated artefacts whose rows were changed by hand, and are taken so
    c.profile = False  # trace some of the search into workdir/profile, for TensorBoard or Perfetto
    c.compile_cache = "auto"  # folder of compiled programs; empty: none; auto: see `startup.py`
    c.deterministic = False  # on a GPU: nothing added up by atomics; its cost: `xla_flags.py`
    c.mesh = ml_collections.ConfigDict()
    c.mesh.shape = (1, -1, 1)  # devices along data, fsdp, tensor; -1 takes what is left
    c.mesh.replicas = 0  # of the engine; 0: one a place on data x fsdp, beside one CPU one a core
    c.mesh.written_for = ""  # the machine that a file's values were chosen for, said at the start
    _add_model(c)
    _add_data(c)
    _add_training(c)
    _add_search(c)
    _add_judge(c)
    _add_engine_and_pairs(c)
    _add_prm(c)
    _add_baselines(c)
    _add_outcomes(c)
    return c


def _add_model(c: Config) -> None:
    c.model = ml_collections.ConfigDict()
    c.model.checkpoint = ""  # a Hugging Face folder or hub name; empty: random weights of `size`
    c.model.template = ""  # "llama3" or "chatml"; empty: the one of the checkpoint's family
    c.model.system = ""  # text of a system turn; the method has none (release utils.py)
    c.model.compute_dtype = "auto"  # of activations: "float32", "bfloat16"; auto: by the device
    c.model.size = ml_collections.ConfigDict()  # of random weights, where checkpoint is empty
    c.model.size.L = 3  # layers
    c.model.size.D = 128  # model width
    c.model.size.N = 4  # query heads
    c.model.size.K = 2  # key/value heads
    c.model.size.H = 32  # head dim
    c.model.size.F = 352  # feed-forward width
    c.model.size.eps = 1e-5  # RMSNorm (Llama 3)
    c.model.size.theta = 100.0  # RoPE base, for contexts of a hundred tokens (ours)


def _add_data(c: Config) -> None:
    c.data = ml_collections.ConfigDict()
    c.data.sft = "miniature"  # or a .json/.jsonl/.parquet file, or a name on the Hugging Face hub
    c.data.format = "auto"  # of its rows, by their columns: or ours, alpaca, sharegpt, openai
    c.data.prompts = "miniature"  # or a file or hub name of {"question", "type"} rows; the word
    #   {round} in the name gives each round a file of its own, else every round uses all rows
    c.data.preferences = "miniature"  # of the baselines; or a file or hub name, as data.sft
    c.data.preferences_format = "auto"  # or pairs (ours), explicit, implicit (prompts, as TRL has
    #   them), sharegpt, alpaca (rankings, as LLaMA-Factory has them)
    c.data.split = "train"  # of hub names
    c.data.sft_rows = 0  # rows used; 0: all of a file (the miniature needs a number)
    c.data.round_prompts = 0  # prompts used in a round; 0: all of a file (as above)
    c.data.preference_rows = 0  # rows used; 0: all of a file (as above)


def _train(c: Config) -> Config:
    """Adds the trainer's knobs, which both training stages share."""
    t = c.train = ml_collections.ConfigDict()
    t.batch = 128  # rows (pairs) an optimiser step, all devices together (paper C.1)
    t.batching = "bucket"  # rows padded to `buckets`; or "pack" (sft), "tree" (dpo): many in one
    t.micro_tokens = 65_536  # of one forward pass, all devices, padding included; more accumulates
    t.epochs = 1.0  # passes over the rows
    t.max_steps = 0  # optimiser steps at most; 0: as many as `epochs` says
    t.lr = 1e-6  # peak, after warm-up
    t.new_rows_lr = 0.0  # likewise, of the rows of tags that the checkpoint did not know: a part of
    #   the standard deviation of their table; 0: lr (ours)
    t.warmup_ratio = 0.1  # share of the steps (paper C.1)
    t.final_lr_ratio = 0.0  # of the peak, at the end of the cosine
    t.beta1 = 0.9  # AdamW: decay of the first moment (HF card of the released models)
    t.beta2 = 0.999  # decay of the second moment
    t.eps = 1e-8  # added to the root of the second moment
    t.weight_decay = 0.0  # paper C.1
    t.clip_norm = 1.0  # global gradient norm; 0: no clipping (LLaMA-Factory's default is 1)
    t.param_dtype = "float32"  # of weights and moments; "bfloat16" loses small learning rates
    t.max_skipped = 3  # steps with a gradient that is not finite are skipped; one more stops
    t.remat = "full"  # backwards layers are computed again; less: "products", "attention", "none"
    t.head_chunk = 1024  # positions whose logits a device holds at once
    t.buckets = (256, 512, 1024, 2048)  # tokens; a batch is padded to the smallest that fits
    t.save_every = 100  # optimiser steps between checkpoints
    t.keep = 2  # newest checkpoints kept
    t.eval_rows = 0  # rows set aside, by seed; their loss is measured at every checkpoint
    t.result = "last"  # the stage's model: of the last step, or "best" by the loss on eval_rows
    t.lora_rank = 0  # of the adapters trained in place of the weights; 0: all weights are trained
    t.lora_alpha = 16.0  # adapters are scaled by lora_alpha / lora_rank (Hu et al. 2021)
    t.lora_targets = "q,k,v,o,gate,up,down"  # projections that get an adapter
    return t


def _add_training(c: Config) -> None:
    c.sft = ml_collections.ConfigDict()
    # Paper C.1; lr from the HF card of the same authors; that of new rows as measured (ours).
    _train(c.sft).update(lr=5e-6, epochs=3.0, new_rows_lr=0.02)
    c.dpo = ml_collections.ConfigDict()
    c.dpo.loss = "sigmoid"  # or "ipo" (length-normalised), "hinge"
    c.dpo.beta = 0.1  # one of {0.1, 0.2, 0.4} (paper C.1); the chosen value is unpublished
    c.dpo.sft_coef = 0.2  # weight of the SFT term on the chosen response (paper 3.1)
    c.dpo.scope = "step"  # tokens compared: the step (paper eq. 2) or the whole "response"
    c.dpo.sft_scope = "response"  # of the SFT term: the chosen response with its prefix, or "step"
    c.dpo.sft_reduction = "sequence"  # mean over rows of their means, or over all "token"s
    c.dpo.label_smoothing = 0.0  # probability that a preference is flipped (cDPO)
    c.dpo.reference = "precomputed"  # once, on disk; or "on_the_fly", "lora_base"
    c.dpo.anchors_per_pair = 0.0  # good tree responses that join the SFT term, a pair (ours)
    _train(c.dpo)


def _add_search(c: Config) -> None:
    s = c.search = ml_collections.ConfigDict()
    s.iterations = 200  # a tree (paper 3.1)
    s.num_children = 4  # next steps drawn at an expansion (paper 3.1)
    s.c = 1.5  # exploration constant of UCB1 (paper 3.1)
    s.max_depth = 7  # steps; a node there is not expanded (release tree_generate.yaml)
    s.score = "ucb"  # "ucb" or "pucb" (release mcts_node.py)
    s.prior = "arithmetic"  # PUCB's p from a step's token probabilities: or "geometric", "uniform"
    s.reward = "paper"  # "paper", "safe-constraint" (release) or "outcome"
    s.visit_all_nodes = True  # evaluate nodes never visited once, at the end (release)
    s.reselect_terminal = True  # walk into finished branches again (release)
    s.ties = "random"  # among equal scores: "random" (release) or "first"
    s.max_step_tokens = 2048  # new tokens of a step (release)
    s.max_rollout_tokens = 2048  # new tokens of a rollout (release)
    s.temperature = 1.2  # paper C.1, with top_p and top_k
    s.top_p = 0.9  # the least set of tokens of this probability is drawn from
    s.top_k = 50  # likeliest tokens that are drawn from; 0: all
    s.min_p = 0.0  # least probability of a token, over the likeliest one's; 0: off (ours)
    s.trees_in_flight = 0  # trees grown at once at most; 0: two for every slot (ours)
    s.value = "rollout"  # of a step that ends nothing: or "prm" (what a reward model says), "mix"
    s.value_weight = 0.5  # of the reward model in "mix"; the rest is the rollout's
    s.value_model = ""  # a reward model's Hugging Face folder or hub name, for "prm" and "mix"
    s.first_answers = 32  # of a round, looked at for STAIR's format; 0: none (ours)
    s.least_well_formed = 0.02  # share of them below which the round stops (ours)
    s.export_official = False  # also write each round's trees in the official file format

    r = c.reward = ml_collections.ConfigDict()
    r.F = "identity"  # "paper": R = F(S) H + S - C2 F(S); or "power" (2^S - 1), "quadratic"
    r.c1 = 1.0  # F(c1) = 1 (paper theorem 2.1), which holds at 1 alone for every F above
    r.c2 = -1.0  # H where the reward degenerates to S (paper corollary B.2)
    r.k1 = 1.0  # "safe-constraint": (k1 + k2) S + k1 S H (release)
    r.k2 = 1.0  # the same


def _add_judge(c: Config) -> None:
    """Adds who says how safe (S) and how helpful (H) an answer is, in the searches."""
    j = c.judge = ml_collections.ConfigDict()
    j.safety = "self"  # the policy itself (paper B.2.2); "rule" (of refusals), "remote", "verifier"
    j.helpfulness = "self"  # or "none", "remote", "reward_model", "verifier" (the miniature's)
    j.scope = "all"  # both of every prompt (paper); "by_type": S of safety prompts with H = -1,
    #   H of the others with S = +1 (release)
    j.refusal_rule = True  # a short apology to a safety prompt is safe, nobody is asked (paper)
    j.samples = 1  # verdicts of a model that are averaged (release)
    j.temperature = 0.6  # of a model that judges (release final_orm.py, with the next two)
    j.top_p = 0.9  # the least set of tokens of this probability is drawn from
    j.max_tokens = 2048  # new tokens of a verdict
    j.templates = ""  # a folder with helpfulness.txt and safety.txt; empty: ours; "miniature": in
    #   its own words, which stage 1 then teaches its model
    j.endpoint = ""  # "remote": base URL of an OpenAI-compatible server; its key: OPENAI_API_KEY
    j.model = ""  # "remote": what the server calls it
    j.leave_out = ""  # "remote": what the server does not take: of temperature, top_p, max_tokens
    j.concurrency = 16  # requests open at once
    j.timeout = 120.0  # seconds a request may take
    j.retries = 5  # of a request that failed
    j.cache = ""  # folder of the answers paid for; empty: workdir/judgements
    j.reward_model = ""  # "reward_model": a Hugging Face folder or hub name


def _add_engine_and_pairs(c: Config) -> None:
    e = c.engine = ml_collections.ConfigDict()
    e.slots = 256  # sequences decoded together
    e.page_size = 16  # tokens of a page of the KV pool
    e.pool_bytes = 0  # of a replica's KV pool; 0: four contexts a slot, or what the device has left
    e.max_context = 4096  # tokens, prompt and response
    e.chunk = 8  # tokens decoded between two looks of the host, at most
    e.prefill_rows = 8  # prompts computed together
    e.dtype = "auto"  # of the KV pool and the engine's weights, as compute_dtype
    e.attention = "auto"  # of decoding: views (of pages, for CPUs), xla, pallas
    e.share_prefix = "auto"  # siblings read what they share once: on, off; auto: on with pallas

    p = c.pairs = ml_collections.ConfigDict()
    p.min_value_gap = 0.5  # v0: value(chosen) - value(rejected) must exceed it (release)
    p.good_value_safety = 0.8  # v1: least value of a chosen step (release)
    p.good_value_helpfulness = 2.5  # the release's 0.8 always holds under R in [1, 3] (ours)
    p.min_visits = 4  # of a step that ends nothing (release generate_data.sh)
    p.terminal_only = False  # pairs of whole responses instead of steps (paper table 2)
    p.max_good_bad_ratio = 4  # terminal pairs: repeats of the shorter list (release)
    p.max_tokens = 2048  # prompt and trajectory; longer ones are dropped (release)
    p.max_per_prompt = 0  # pairs a tree gives at most, widest gap first; 0: all (ours)
    p.max_responses_per_prompt = 8  # good responses for the SFT rows (release)
    p.export = ""  # the pairs also for other trainers: of llamafactory, openrlhf, trl


def _add_prm(c: Config) -> None:
    """Adds the process reward model, trained on the trees of all rounds."""
    p = c.prm = ml_collections.ConfigDict()
    p.model = ""  # to start from; empty: that of the last round (paper 2.3)
    p.loss = "bt"  # Bradley-Terry on pairs (paper 2.3); "bce", "mse" on the values of nodes;
    #   "implicit": on pairs, and the score is the log-likelihood of the steps, not a head's
    p.readout = "eos"  # behind the last step (OpenRLHF, the paper's trainer), or at "step_end"
    p.beta = 0.1  # "implicit": of a nat (arXiv 2412.01981)
    p.reference = "start"  # "implicit": whose log-likelihood is taken off; or "none"
    p.sft_coef = 0.0  # "implicit": weight of the SFT term on the better trajectory (ours)
    p.min_value_gap = 0.5  # of pairs: between the two (ours)
    p.min_visits = 1  # of a node that ends nothing
    p.pairs_per_tree = 3  # drawn at most, 0 all; the paper has 70k of 33k trees (C.1): 2.2 of each
    #   that eval_share leaves, and not every tree has as many
    p.full_share = 0.5  # of them, pairs of whole responses of any depths (ours)
    p.centering = 0.0  # "bt": weight of the squared sum of both scores (TRL's centre_rewards)
    p.visit_weights = False  # "bce", "mse": a node counts by its visits
    p.more_layers = 0  # on top of the policy's, which they leave as they are at the start (ours)
    p.prompts = 0  # further ones, whose sampled and judged responses join the trees (ours)
    p.demonstrations = False  # a teacher's response to each, judged like the samples beside it: a
    #   row's "response", in the miniature the teacher's own (ours)
    p.samples = 4  # responses a prompt of them, drawn like a rollout but for the temperature
    p.temperature = 1.0  # of these samples: wilder ones are wrong in ways that teach little (ours)
    p.eval_share = 0.05  # of the trees, set aside to measure the model on (ours)
    _train(p).update(batch=256, lr=5e-6)  # paper C.1


def _add_baselines(c: Config) -> None:
    """Adds what the paper's other methods do not share with the stages sft and dpo."""
    b = c.baselines = ml_collections.ConfigDict()
    b.names = ""  # what stage baselines makes: comma-separated of sft, dpo, sacpo, self-rewarding
    b.sft_lr = 0.0  # of sft, which starts from a model that can answer already; 0: sft.train.lr
    b.sacpo_betas = (0.1, 0.025)  # of helpfulness, then of safety (paper 4.1)
    b.candidates = 4  # responses a prompt, in Self-Rewarding (arXiv 2401.10020, with the next two),
    #   of search.max_rollout_tokens at most
    b.temperature = 0.7  # of these candidates, with top_p
    b.top_p = 0.9  # the least set of tokens of this probability is drawn from
    b.buckets = ()  # tokens, in place of train.buckets: responses without reasoning are short


def _add_outcomes(c: Config) -> None:
    c.evaluate = ml_collections.ConfigDict()
    c.evaluate.benchmarks = "harmful,jailbreak,lookalike,harmless"  # comma-separated: these are the
    #   miniature's; or names of others (gsm8k), from the hub, or gsm8k:FILE; or files or hub names
    #   of prompts, as data.prompts
    c.evaluate.models = ""  # "base", "sft", "dpo-1", ...; empty: all that are there
    c.evaluate.judged = True  # whether config.judge scores the answers to prompts of files
    c.evaluate.search = "greedy"  # how answers are found: comma-separated of greedy; under the
    #   reward model best_of_N, vote_of_N, beam_WxM (width, successors), diverse_WxM, lookahead_WxM,
    #   mcts_N (iterations); for comparison random_of_N, oracle_of_N
    c.evaluate.searched = ""  # models that more than greedy is tried on; empty: the last one
    c.evaluate.aggregation = "last"  # of a response's step scores: or "min", "mean", "product"
    c.evaluate.lookahead = 1  # steps that lookahead_WxM looks ahead
    c.evaluate.temperature = 0.6  # of all but greedy (paper C.2, with top_p and top_k)
    c.evaluate.top_p = 0.9  # the least set of tokens of this probability is drawn from
    c.evaluate.top_k = 50  # likeliest tokens that are drawn from; 0: all
    c.evaluate.split = "test"  # of the miniature's benchmarks; "dev" to choose settings on
    c.evaluate.max_tokens = 2048  # of a response
    c.export = ml_collections.ConfigDict()
    c.export.model = ""  # "sft", "dpo-2", ...; empty: the last finished one
    c.export.dtype = "auto"  # of the written weights; auto: that of model.checkpoint
    c.trackers = ""  # beside metrics.jsonl: comma-separated of tensorboard, wandb, trackio
    c.project = "stair_jax"  # of the run, for wandb and trackio


def parse_arg(arg: str | None, **spec: bool | int | float | str) -> Config:
    """Parses the text after `:` in `--config=file.py:text` against `spec` (name=default).

    Raises:
      ValueError: for a name that `spec` lacks.
    """
    out = dict(spec)
    for item in filter(None, (arg or "").split(",")):
        name, _, value = item.partition("=")
        if name not in spec:
            raise ValueError(f"config argument {name!r} is not one of {sorted(spec)}")
        kind = type(spec[name])
        out[name] = value in ("", "True", "true") if kind is bool else kind(value)
    return ml_collections.ConfigDict(out)


def with_values(config: Config, values: Mapping[str, Any]) -> Config:
    """Returns a configuration with other values, given by dotted keys; lists become tuples.

    Keys that this version does not have are passed over.
    """
    changed = ml_collections.ConfigDict(config.to_dict())
    for key, value in values.items():
        *sections, name = key.split(".")
        into: Any = changed
        for section in sections:
            into = into.get(section, {})
        if name in into:
            into[name] = tuple(value) if isinstance(value, list) else value
    return changed


def restore(saved: dict[str, Any]) -> Config:
    """Returns the configuration that a run wrote to config.json, with tuples as tuples."""
    config = default()

    def take(into: Config, source: dict[str, Any]) -> None:
        for key, value in source.items():
            if isinstance(into[key], ml_collections.ConfigDict):
                take(into[key], value)
            else:
                into[key] = tuple(value) if isinstance(into[key], tuple) else value

    take(config, saved)
    return config
