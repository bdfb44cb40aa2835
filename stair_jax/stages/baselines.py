"""Stage baselines: the paper's other methods, from the same start with the same trainers.

None of them reasons: a response is an answer as a whole. Settings of the trainers are those of the
stages sft and dpo (the paper searched one grid for all), but for the loss, which compares whole
responses and has no SFT term: that term is there to keep STAIR's format. Start is the run's
checkpoint. A run without one has nothing that could answer, so it first trains `baseline-start` on
the teacher's answers without their reasoning.

- sft: on the chosen responses of all preferences.
- dpo: on all preferences.
- sacpo: on the helpful preferences, then from there on those of safety, with a smaller beta; the
  first step is the second's reference (arXiv 2404.11049; STAIR section 4.1).
- self-rewarding: K rounds. The model's own responses to the rounds' prompts are judged as the
  search's are, the best against the worst of each prompt (arXiv 2401.10020).
"""

import logging
from collections.abc import Iterable

from stair_jax import jsonl
from stair_jax.config.schema import DpoConfig
from stair_jax.config.stages import BASELINES
from stair_jax.config.words import split_csv
from stair_jax.data import examples, sources
from stair_jax.engine.request import Sampling
from stair_jax.records import Candidate, Preference
from stair_jax.run import known_models, models, prepared, responses, training, worlds
from stair_jax.run import rows as rows_lib
from stair_jax.run.hashes import digest_of
from stair_jax.run.known_models import Model
from stair_jax.run.workdir import Run, train_config
from stair_jax.search import candidates

log = logging.getLogger(__name__)


def look(run: Run) -> None:
    """Reads the preferences where they lie in a file here."""
    source = prepared.source_of(run.config, "preferences")
    if sources.is_file(source) and not prepared.is_awaited(run, "preferences"):
        rows_lib.for_preferences(run.config)


def run(run: Run) -> None:
    """Makes the baselines that `config.baselines.names` lists and that are not there yet."""
    start = _start(run)
    for name in split_csv(run.config.baselines.names):
        _METHODS[name](run, start)


def _start(run: Run) -> Model:
    """Returns the model that all baselines start from."""
    base, model = known_models.base(run), known_models.baseline("start")
    if base.checkpoint:
        return base
    if _begin(run, model, "start", base):
        c, policy = run.config, models.load(run, base)
        rows = [
            examples.answer_example(row, row.response, policy.codec)
            for row in worlds.of_model(c).answer_rows(c.seed, c.data.sft_rows)
        ]
        training.sft(run, model.artefact, policy, rows, train_config(c, "baselines.start"))
    return model


def _sft(run: Run, start: Model) -> None:
    model = known_models.baseline("sft")
    if _begin(run, model, "sft", start):
        policy = models.load(run, start)
        preferences = rows_lib.for_preferences(run.config)
        rows = [examples.answer_example(row, row.chosen, policy.codec) for row in preferences]
        config = train_config(run.config, "baselines.sft")
        training.sft(run, model.artefact, policy, rows, config)


def _dpo(run: Run, start: Model) -> None:
    model = known_models.baseline("dpo")
    if _begin(run, model, "dpo", start):
        rows = rows_lib.for_preferences(run.config)
        _prefer(run, model, "dpo", start, rows, beta=run.config.dpo.beta)


def _sacpo(run: Run, start: Model) -> None:
    steps = ("sacpo-1", "helpfulness"), ("sacpo", "safety")
    for (step, kind), beta in zip(steps, run.config.baselines.sacpo_betas, strict=True):
        model = known_models.baseline(step)
        if _begin(run, model, "sacpo", start):
            rows = [row for row in rows_lib.for_preferences(run.config) if row.type == kind]
            if not rows:
                raise ValueError(
                    f"config.data.preferences: {run.config.data.preferences}: no row of type"
                    f" {kind!r}, sacpo needs both"
                )
            _prefer(run, model, "sacpo", start, rows, beta=beta)
        start = model


def _self_rewarding(run: Run, start: Model) -> None:
    for number in range(1, run.config.rounds + 1):
        model = known_models.baseline(f"self-rewarding-{number}")
        folder = f"{model.artefact}/candidates"
        if not run.lineage.finished(folder):
            _sample(run, folder, start, number)
        rows = jsonl.read_jsonl(run.workdir / folder / "candidates.jsonl", Candidate)
        if not (pairs := candidates.best_against_worst(rows)):
            log.warning("self-rewarding ends here: all candidates of round %d tie", number)
            return
        if _begin(run, model, "self-rewarding", start, folder):
            beta = run.config.dpo.beta
            _prefer(run, model, "self-rewarding", start, pairs, beta=beta, seed=number)
        start = model


_METHODS = {"sft": _sft, "dpo": _dpo, "sacpo": _sacpo, "self-rewarding": _self_rewarding}


def _begin(run: Run, model: Model, step: str, start: Model, *more: str) -> bool:
    """Notes that a model is being made; False where it is made already."""
    if known_models.finished(run, model):
        return False
    log.info("%s ...", model.artefact)
    parents = (*start.parents, *more, *prepared.parents(run, BASELINES))
    run.begin(model.artefact, f"{BASELINES.name}.{step}", parents)
    return True


def _prefer(
    run: Run,
    model: Model,
    step: str,
    start: Model,
    rows: Iterable[Preference] | Iterable[tuple[Candidate, Candidate]],
    *,
    beta: float,
    seed: int = 0,
) -> None:
    """Trains a model by DPO on whole responses; `start` is its reference."""
    policy = models.load(run, start)
    loss = DpoConfig.of(
        run.config.dpo, beta=beta, scope="response", sft_coef=0.0, anchors_per_pair=0.0
    )
    training.dpo(
        run,
        model.artefact,
        policy,
        [examples.preference_example(row, policy.codec) for row in rows],
        (),
        train_config(run.config, f"{BASELINES.name}.{step}"),
        loss,
        seed=run.config.seed + seed,
    )


def _sample(run: Run, artefact: str, start: Model, number: int) -> None:
    """Samples and judges the candidates of a round."""
    c, b = run.config, run.config.baselines
    parents = (*start.parents, *prepared.parents(run, BASELINES))
    run.begin(artefact, f"{BASELINES.name}.candidates", parents)
    draw = candidates.Draw(
        count=b.candidates,
        sampling=Sampling(temperature=b.temperature, top_p=b.top_p),
        max_tokens=c.search.max_rollout_tokens,
        key=(c.seed, artefact),
        direct=True,
    )
    found = responses.sample(run, artefact, start, rows_lib.for_round(c, number), draw)
    rows = found.rows
    pairs = len(candidates.best_against_worst(rows))
    counts = {
        "candidates": len(rows),
        "pairs": pairs,
        "passed_over": len(found.passed_over),
        "unrewarded": sum(row.reward is None for row in rows),
    }
    run.metrics.rewind(artefact, -1)
    run.metrics.log(artefact, 0, counts)
    run.lineage.finish(artefact, digest_of(repr(rows)), **counts, rubrics=found.rubrics)
