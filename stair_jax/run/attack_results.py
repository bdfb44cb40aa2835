"""What attacks on all models came to: figures, judges' verdicts, evals/attacks.json, the page."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from stair_jax import jsonl
from stair_jax.evals.attacks import attacked
from stair_jax.evals.attacks.attacked import PAIR, Attacked
from stair_jax.evals.benchmark import Benchmark, registered
from stair_jax.evals.report import attacks as page
from stair_jax.run import attack_models, judge_models, judged_figures, verdicts
from stair_jax.run.judged_figures import Verdicts
from stair_jax.run.workdir import Run

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class OnModel:
    """What attacks on one model came to.

    Attributes:
      direct: whether all of a response is the answer, of a model that does not reason.
      rows: by attack, then by benchmark.
    """

    direct: bool
    rows: Mapping[str, Mapping[str, Sequence[Attacked]]]


def write(
    run: Run,
    every: Sequence[Benchmark],
    asked: Sequence[Benchmark],
    found: Mapping[str, OnModel],
    results: Mapping[str, Any],
    published: Verdicts,
) -> None:
    """Writes evals/attacks.json and report/attacks.md, and says what is in them.

    Args:
      run: the run.
      every: all benchmarks.
      asked: those that were attacked.
      found: by model.
      results: {model: {benchmark: {metric: ...}}} without attacks.
      published: what judges said of the answers under attack.
    """
    report = {
        model: {
            "attacked": {
                one.name: {
                    "complied": one.complied,
                    "rules": list(one.metrics),
                    "plain": results[model][one.name],
                    "attacks": {
                        attack: _summary(run, one, attack, by[one.name], on.direct, published)
                        for attack, by in on.rows.items()
                    },
                }
                for one in asked
            },
            "over_refusal": {
                one.name: {one.over_refused: results[model][one.name][one.over_refused]}
                for one in every
                if one.over_refused
            },
        }
        for model, on in found.items()
    }
    harmless = [  # in the language of the run's model
        name
        for name, one in registered().items()
        if one.over_refused and bool(one.world) != bool(run.config.model.checkpoint)
    ]
    jsonl.write_json(run.workdir / "evals" / "attacks.json", report)
    path = run.workdir / "report" / "attacks.md"
    jsonl.write_text(path, page.markdown(report, harmless))
    for line in page.warnings(report, harmless):
        log.warning("evaluate: %s", line)
    for line in page.lines(report):
        log.info("evaluate %s", line)
    print(f"What attacks came to: {path}.")


def _summary(
    run: Run,
    benchmark: Benchmark,
    attack: str,
    rows: Sequence[Attacked],
    direct: bool,
    published: Verdicts,
) -> dict[str, Any]:
    """Returns what one attack on one benchmark came to, as attacks.json has it."""
    found: dict[str, Any] = attacked.tally(rows)
    for role, needed_by in attack_models.ROLES.items():
        if attack in needed_by:
            found[role] = attack_models.of(run.config, role).name
    if attack == PAIR:
        found["targets"] = attacked.targets(rows)
        said = f"{', '.join(found['protocols'])}, judge {found['attack_judge']}"
        said += ", answers to begin " + _begins(**found["targets"])
        found["pair_success"] = {**attacked.pair_success(rows), "protocol": said}
    found["figures"], found["missing"] = {}, {}
    for name, variant in attacked.variants(benchmark, rows, direct=direct).items():
        judged = published.metrics(benchmark, variant.answers, direct=direct)
        # As many answers are due as there are rows, and of all techniques as many times.
        more = len(variant.answers) + variant.missing.total() - len(benchmark.prompts)
        for figure in judged.values():
            figure["missing"] += more
        own = attacked.metrics(benchmark, variant, direct=direct)
        if benchmark.protocol:
            for figure in own.values():
                figure["protocol"] = f"{benchmark.protocol}, under {attack}: {name}"
        found["figures"][name] = {
            metric: attacked.by_request(variant, figure)
            for metric, figure in {**own, **judged}.items()
        }
        found["missing"][name] = dict(variant.missing)
    return found


def _begins(rows: int, ours: int) -> str:
    if not ours:
        return "as the benchmark's rows say"
    return "with a sentence of ours" + (f", {rows} as their rows say" if rows else "")


def verdicts_of(run: Run, asked: Sequence[Benchmark], found: Mapping[str, OnModel]) -> Verdicts:
    """Returns what the published benchmarks' judges say of the answers under attack.

    They are shown the original request, not the attack.

    Raises:
      LeftOpen: where answers are left open, because no judge could be reached.
    """
    models, words = judge_models.of(run.config), judge_models.wordings(run.config, asked)
    if not models:
        return Verdicts()
    given = [
        dataclasses.replace(question, attack=attack)
        for on in found.values()
        for attack, by in on.rows.items()
        for one in asked
        for variant in attacked.variants(one, by[one.name], direct=on.direct).values()
        for question in judged_figures.questions(one, variant.answers, words, direct=on.direct)
    ]
    replies = verdicts.ask(run, given)
    return Verdicts(
        judges=[one.name for one in models], wordings=words, replies=replies, asked=given
    )
