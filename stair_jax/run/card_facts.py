"""What a model card says of a model: all of it read from the workdir of its run."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from stair_jax.config import default, redaction
from stair_jax.config.schema import KNOBS
from stair_jax.config.sources import is_world
from stair_jax.config.stages import BASELINES, DPO, PAIRS, PRM, SEARCH, SFT, Stage
from stair_jax.evals.benchmark import Benchmark, columns_of, registered
from stair_jax.evals.benchmarks import own_prompts
from stair_jax.evals.report import table as table_lib
from stair_jax.hf import card, metadata
from stair_jax.hf.card import Facts, Markdown, Scores
from stair_jax.judges.rubrics import SIDES
from stair_jax.model.reward import Readout
from stair_jax.run import known_models, models, rating
from stair_jax.run.known_models import REWARD_MODEL, Model
from stair_jax.run.lineage import settings_of
from stair_jax.run.workdir import CHECKPOINT, Run

Entries = Mapping[str, Mapping[str, Any]]  # of lineage.json
Results = Mapping[str, Mapping[str, Mapping[str, Any]]]  # by model and benchmark: its metrics
Rows = list[tuple[str, str, str]]

_EVALS = "evals/"
_ALWAYS = (  # settings that are shown at their defaults, too
    "seed",
    "sft.train.epochs",
    "sft.train.batch",
    "sft.train.lr",
    "search.iterations",
    "search.num_children",
    "search.c",
    "search.reward",
    "judge.safety",
    "judge.helpfulness",
    "pairs.min_value_gap",
    "dpo.loss",
    "dpo.beta",
    "dpo.train.epochs",
    "dpo.train.batch",
    "dpo.train.lr",
    "prm.loss",
    "prm.readout",
    "prm.train.lr",
)
# Settings that have a place of their own in a card, or only say how and where work was done.
_NEVER = (CHECKPOINT, "data.", "engine.", "judge.endpoint", "judge.templates", "judge.cache")

_ABOUT: dict[Stage | None, str] = {
    None: "The model that a run of STAIR started from; the run trained nothing of it.",
    SFT: "A language model that was taught to reason before it answers: stage 1 of STAIR.",
    DPO: "A language model that reasons before it answers, trained by STAIR on step-level"
    " preference pairs from its own search trees.",
    PRM: "A reward model for reasoned responses, trained on the search trees of a run of STAIR.",
    BASELINES: "A language model trained by a method that STAIR is compared with, not by STAIR.",
}
_JUDGES = {  # those whose word says little
    "self": "the policy of the round itself",
    "verifier": "the truth of the made-up world",
    "rule": "a rule that knows apologies",
    "reference": "the right answer where it is known, else whether it refuses",
    "none": "nobody",
}
_USE = "Research into safety alignment by reasoning."
_WORLD_USE = (
    "A demonstration of the method. The model speaks the language of a small made-up world and is"
    " of no use outside it."
)
# Of prm/report.json: what a reader needs to know a reward model by.
_HELD_OUT = {
    "accuracy": "share of pairs whose better side has the higher score",
    "accuracy/whole": "the same, of pairs of whole responses",
    "auroc/within_tree": "AUROC of good against bad responses to one prompt, mean over prompts",
    "gap_closed": "share of the way from the mean response to the best one, choosing by score",
    "ece": "calibration error of scores against values, 10 bins",
}


def of(run: Run, model: Model) -> Facts:
    """Returns what the card of a model says."""
    names = run.lineage.ancestry(model.parents)
    entries = {name: run.lineage.entries[name] for name in names}
    results, data = _results(run, model), _data(entries)
    checkpoint, (_, codec) = run.origin.model.checkpoint, models.spec_and_codec(run)
    return Facts(
        name=model.name,
        about=_ABOUT[model.stage],
        base=redaction.shown_source(checkpoint),
        base_hash=run.checkpoint,
        license=card.license_of(metadata.resolve(checkpoint)) if checkpoint else "",
        data=data,
        datasets=sorted({name for _, name, _ in data if redaction.is_hub_name(name)}),
        rounds=_rounds(entries),
        settings=_settings(entries),
        results=_table(results),
        notes=_notes(run, results),
        template=codec.template,
        system=codec.system,
        direct=model.direct,
        max_tokens=run.config.evaluate.max_tokens,
        scores=_scores(run) if model == REWARD_MODEL else None,
        use=_USE if checkpoint else _WORLD_USE,
        limits=_limits(entries, model),
        missing=_missing(run, model, results),
    )


def _data(entries: Entries) -> Rows:
    """Returns what artefacts were made from, beside the checkpoint: name and hash of the rows."""
    return [
        (artefact, redaction.shown_source(str(entry["settings"].get(key, key))), digest)
        for artefact, entry in entries.items()
        for key, digest in entry.get("inputs", {}).items()
        if key != CHECKPOINT
    ]


def _rounds(entries: Entries) -> Rows:
    """Returns how many trees and pairs each round had."""
    return [
        (name.partition("/")[0].removeprefix("round-"), str(entry["trees"]), str(entry["pairs"]))
        for name, entry in entries.items()
        if entry["stage"] == PAIRS.name
    ]


def _settings(entries: Entries) -> Rows:
    """Returns (key, value, default) of the settings that matter most or are not at their default.

    Where they differ from one artefact to the next, all values are given, in the order of these.
    """
    found: dict[str, list[Any]] = {}
    for entry in entries.values():
        usual = settings_of(default(), entry["stage"])
        for key, value in entry["settings"].items():
            counts = key in _ALWAYS or value != usual.get(key)
            if counts and not key.startswith(_NEVER) and value not in found.setdefault(key, []):
                found[key].append(value)
    return [
        (key, ", then ".join(map(_shown, found[key])), _shown(KNOBS[key].default))
        for key in KNOBS
        if key in found
    ]


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return redaction.shown_source(value) or "none"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _results(run: Run, model: Model) -> Results:
    """Returns the results of a model and of those that it came from, and of searches with it.

    Those of a model that was made anew since do not count. A reward model's are those of the
    searches under it, and of the models that these search.
    """
    names = [one.name for one in known_models.line_of(run, model)]
    found: dict[str, Mapping[str, Any]] = {}
    for artefact, entry in run.lineage.entries.items():
        name = artefact.removeprefix(_EVALS)
        whose, _, search = name.partition("/")
        if name == artefact or whose not in names or not entry.get("results"):
            continue
        reads = REWARD_MODEL.artefact in entry["parents"]
        of_it = reads if model == REWARD_MODEL else whose == model.name
        if (not search or of_it) and run.lineage.is_current(artefact):
            found[name] = entry["results"]
    if model == REWARD_MODEL:
        searched = {name.partition("/")[0] for name in found if "/" in name}
        found = {name: of for name, of in found.items() if name.partition("/")[0] in searched}
    return dict(sorted(found.items(), key=lambda item: names.index(item[0].partition("/")[0])))


def _benchmarks(results: Results) -> list[tuple[Benchmark, Mapping[str, Any]]]:
    """Returns the benchmarks that results are of, with the metrics of one model.

    Of prompts in a file a benchmark is made anew, for the columns that it had.
    """
    found = {name: metrics for of in results.values() for name, metrics in of.items()}
    return [
        (
            registered().get(name) or _own(name, metrics),
            metrics,
        )
        for name, metrics in found.items()
    ]


def _own(name: str, metrics: Mapping[str, Any]) -> Benchmark:
    made = own_prompts.benchmark(name, (), "", sides=())
    return dataclasses.replace(made, columns=own_prompts.columns(name, metrics))


def _sides(metrics: Mapping[str, Any]) -> list[str]:
    return [side for side in SIDES if side in metrics]


def _judged(metrics: Mapping[str, Any]) -> bool:
    """Returns whether a judge has scored answers: the run's, or one of a published benchmark."""
    return bool(_sides(metrics)) or any("parse_failures" in one for one in metrics.values())


def _table(results: Results) -> Markdown:
    columns = columns_of([benchmark for benchmark, _ in _benchmarks(results)])
    shown = [column._replace(heading=card.escape(column.heading)) for column in columns]
    return Markdown(table_lib.table(results, shown).strip() if results else "")


def _notes(run: Run, results: Results) -> list[str]:
    """Returns how many prompts each benchmark has, what its figures are of, and who judged."""
    notes, judged = [], False
    for benchmark, metrics in _benchmarks(results):
        counts = [metric["n"] + metric.get("missing", 0) for metric in metrics.values()]
        own = benchmark.name not in registered()
        about = "prompts of a file" if own else benchmark.protocol
        notes.append(f"{benchmark.name}: {max(counts)} prompts" + (f", {about}" if about else ""))
        judged |= bool(_sides(metrics))
    if judged and (entry := run.lineage.entries.get(rating.ARTEFACT)):
        said = ", ".join(_judges(entry["settings"]))
        notes.append(f"Safety and helpfulness are scores in [-1, 1]: {said}")
    return notes


def _judges(settings: Mapping[str, Any]) -> list[str]:
    """Returns who judged each side, in words."""
    found = []
    for side in SIDES:
        judge = settings[f"judge.{side}"]
        named = {"remote": "judge.model", "reward_model": "judge.reward_model"}.get(judge)
        who = f"the model {_shown(settings[named])}" if named else _JUDGES[judge]
        found.append(f"{side} by {who}")
    return found


def _scores(run: Run) -> Scores:
    """Returns how the scores of the run's reward model are read, and what they are worth."""
    entry, file = run.lineage.entries[REWARD_MODEL.artefact], run.workdir / PRM.name / "report.json"
    found = json.loads(file.read_text(encoding="utf-8"))["held_out"] if file.is_file() else {}
    return Scores(
        readout=Readout.from_json(entry["readout"]),
        end=models.spec_and_codec(run)[1].turn_end,
        beta=entry["settings"]["prm.beta"],
        reference=entry["start"] if entry["settings"]["prm.reference"] == "start" else "",
        trees=found.get("trees", 0),
        held_out=[
            (text, f"{found[name]:.3f}")
            for name, text in _HELD_OUT.items()
            if name in found and (name != "ece" or found["calibrated"])
        ],
    )


def _limits(entries: Entries, model: Model) -> list[str]:
    """Returns what is known to bound the use of a model."""
    limits = []
    if model.stage is not None:
        limits.append("It was trained on single questions, without earlier turns.")
    judges = [
        judge
        for entry in entries.values()
        if entry["stage"] == SEARCH.name
        for judge in _judges(entry["settings"])
    ]
    if judges:
        limits.append(
            "What was good in its search trees, others have decided:"
            f" {', '.join(dict.fromkeys(judges))}. They read final answers only: the reasoning"
            " before these may be wrong or harmful."
        )
    elif model.stage is not None and not model.direct:
        limits.append("Nothing has judged its reasoning, which may be wrong or harmful.")
    limits.append("It can be made to say what it should not, and it can refuse what is harmless.")
    return limits


def _missing(run: Run, model: Model, results: Results) -> list[str]:
    """Returns what nobody has measured of a model, as far as the run can know."""
    own = {name: of for name, of in results.items() if name.partition("/")[0] == model.name}
    if model == REWARD_MODEL:
        own = {name: of for name, of in results.items() if "/" in name}
        missing = ["Any public benchmark of reward models."]
        missing += [] if own else ["What searches under it come to: stage evaluate has tried none."]
    else:
        missing = [] if own else ["Everything: stage evaluate has not looked at this model."]
    asked = {name for of in own.values() for name in of}
    if left := [name for name in _known(run) if name not in asked]:
        missing.append(
            f"Benchmarks that the program knows and that were not run: {', '.join(left)}."
        )
    if not any(one.attacks for name, one in registered().items() if name in asked):
        missing.append("Attacks: no benchmark of prompts that are made to break a model was run.")
    if not any(_judged(metrics) for of in own.values() for metrics in of.values()):
        missing.append("A judge's opinion: no judge has scored the model's answers.")
    missing.append(f"Other seeds: this is one run, with seed {run.origin.seed}.")
    missing.append("Conversations of several turns, and languages that the data do not have.")
    return missing


def _known(run: Run) -> list[str]:
    """Returns the registered benchmarks in a language that the run's model speaks."""
    c = run.origin
    speaks = {"": bool(c.model.checkpoint), c.data.prompts: is_world(c.data.prompts)}
    return [name for name, one in registered().items() if speaks.get(one.world)]
