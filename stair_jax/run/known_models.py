"""The models of a run, without their weights: names, artefacts, and how they answer."""

import dataclasses
import functools

from stair_jax import text
from stair_jax.config.stages import BASELINES, DPO, PRM, RESULTS, SEARCH, SFT, Stage
from stair_jax.evals.report.table import BASELINE
from stair_jax.hf import metadata
from stair_jax.run.workdir import Run


@dataclasses.dataclass(frozen=True)
class Model:
    """A model of a run.

    Attributes:
      name: in settings, results and messages.
      artefact: the lineage's name for its checkpoints; "" if nothing was trained.
      stage: that trains it; None of the base.
      checkpoint: the Hugging Face folder or hub name of the base; "" of all others, and of random
        weights.
    """

    name: str
    artefact: str
    stage: Stage | None
    checkpoint: str = ""

    @property
    def parents(self) -> tuple[str, ...]:
        """The artefacts that whatever is made from it comes from."""
        return (self.artefact,) if self.artefact else ()

    @property
    def is_baseline(self) -> bool:
        """Whether it is none of STAIR's."""
        return self.stage is BASELINES

    @functools.cached_property
    def direct(self) -> bool:
        """Whether it answers without reasoning, so that a whole response is the answer.

        All baselines are trained to; so does a checkpoint that does not know STAIR's tags.
        """
        if not self.checkpoint:
            return self.is_baseline
        _, tokenizer = metadata.load_spec_and_tokenizer(self.checkpoint)
        return not set(text.TAGS) <= set(tokenizer.get_vocab())


SFT_MODEL = Model("sft", SFT.artefact(), SFT)
REWARD_MODEL = Model("prm", PRM.artefact(), PRM)


def base(run: Run) -> Model:
    """Returns the model that the run starts from: a checkpoint, or random weights."""
    return Model("base", "", None, run.origin.model.checkpoint)


def of_round(number: int) -> Model:
    """Returns the model that a round makes."""
    return Model(f"dpo-{number}", DPO.artefact(number), DPO)


def baseline(step: str) -> Model:
    """Returns what a step of a baseline makes: "sft", "sacpo-1", "self-rewarding-2", ..."""
    return Model(f"{BASELINE}{step}", f"{BASELINES.name}/{step}", BASELINES)


def stair_models(run: Run) -> list[Model]:
    """Returns STAIR's models that exist, in the order in which they were made; the base is one."""
    trained = [SFT_MODEL, *map(of_round, range(1, run.config.rounds + 1))]
    return [base(run), *(model for model in trained if finished(run, model))]


def baselines(run: Run) -> list[Model]:
    """Returns the baselines that exist, each as its last step left it, and their own start."""
    rounds = [baseline(f"self-rewarding-{k}") for k in range(run.config.rounds, 0, -1)]
    others = map(baseline, ("start", "sft", "dpo", "sacpo"))
    last = [model for model in rounds if finished(run, model)][:1]
    return [*(model for model in others if finished(run, model)), *last]


def finished(run: Run, model: Model) -> bool:
    """Returns whether a model is there; the base always is."""
    return not model.artefact or run.lineage.finished(model.artefact)


def of_name(run: Run, name: str) -> Model:
    """Returns the model of a name that the lineage has, whether or not it is still there.

    Raises:
      ValueError: for a name that no model can have.
    """
    if name.startswith(BASELINE):
        return baseline(name.removeprefix(BASELINE))
    kind, _, number = name.partition("-")
    if kind == DPO.name and number.isdecimal():
        return of_round(int(number))
    for model in (base(run), SFT_MODEL):
        if name == model.name:
            return model
    raise ValueError(f"model {name!r} is none that a run can have")


def of_artefact(run: Run, artefact: str) -> Model | None:
    """Returns the model that an artefact of the lineage holds; None where it holds none."""
    result = RESULTS[run.lineage.entries[artefact]["stage"]]
    if not result.trainer:
        return None
    if result in BASELINES.results:
        return baseline(artefact.removeprefix(f"{BASELINES.name}/"))
    if result in DPO.results:
        return of_round(int(artefact.partition("/")[0].removeprefix("round-")))
    return {model.artefact: model for model in (SFT_MODEL, REWARD_MODEL)}[artefact]


def line_of(run: Run, model: Model) -> list[Model]:
    """Returns the models that a model came from, the base first, and the model itself."""
    names = run.lineage.ancestry(model.parents)
    trained = [found for name in names if (found := of_artefact(run, name))]
    return [base(run), *trained]


def named(run: Run, name: str) -> Model:
    """Returns the model of a name that a setting or a flag has.

    Raises:
      ValueError: where there is no such model, saying which there are.
    """
    known = [model.name for model in (*stair_models(run), *baselines(run))]
    # Of a baseline, every step counts: the known ones are the last.
    if name in known or (name.startswith(BASELINE) and finished(run, of_name(run, name))):
        return of_name(run, name)
    raise ValueError(f"model {name!r} is not one of {known}")


def named_or_last(run: Run, name: str) -> Model:
    """Returns `named`; where the name is empty, the newest of STAIR's models."""
    return named(run, name) if name else stair_models(run)[-1]


def need_reward_model(run: Run) -> None:
    """Refuses to go on without the reward model that stage prm trains.

    Raises:
      ValueError: where there is none.
    """
    if not finished(run, REWARD_MODEL):
        raise ValueError(f"reward model: none in {run.workdir}; run stage prm")


def before_round(run: Run, number: int) -> Model | None:
    """Returns the policy that grows the trees of a round, None where it is still missing.

    Round 1 starts from the SFT model; a run that is given a checkpoint and has no SFT stage
    starts from that checkpoint.
    """
    before = SFT_MODEL if number == 1 else of_round(number - 1)
    if finished(run, before):
        return before
    bare = number == 1 and not run.lineage.binds(SFT.artefact())
    return base(run) if bare and run.origin.model.checkpoint else None


def parent_of_round(run: Run, number: int) -> Model:
    """Returns `before_round`; ValueError where that model is still missing."""
    if (model := before_round(run, number)) is None:
        raise ValueError(f"round {number}: the model that it starts from is not trained yet")
    return model


def searched_rounds(run: Run) -> list[int]:
    """Returns the rounds whose trees are whole."""
    rounds = range(1, run.config.rounds + 1)
    return [number for number in rounds if run.lineage.finished(SEARCH.artefact(number))]


def start_of_prm(run: Run) -> Model:
    """Returns the model that the reward model starts from: the one named, or the newest.

    Raises:
      ValueError: where the one named is not there.
    """
    return named_or_last(run, run.config.prm.model)
