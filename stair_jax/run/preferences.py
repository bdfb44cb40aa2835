"""AlpacaEval's way through a run: answers written for its annotators, their verdicts read back."""

import logging
from collections.abc import Sequence
from typing import Any

from stair_jax import jsonl, text
from stair_jax.config import Config
from stair_jax.data import sources
from stair_jax.evals import length_control, preferences
from stair_jax.evals.benchmark import Benchmark
from stair_jax.evals.benchmarks import alpaca_eval
from stair_jax.records import Answer
from stair_jax.run.workdir import Run

log = logging.getLogger(__name__)

OUTPUTS = "alpaca_eval_outputs.json"  # below a model's answers


def recorded(config: Config) -> list[preferences.Preference]:
    """Returns the preferences of `config.evaluate.annotations`; nothing where it is empty.

    Raises:
      ValueError: where it cannot be read, naming file and row.
    """
    source = config.evaluate.annotations
    return [preferences.of_row(*row) for row in sources.read(source)] if source else []


def gamed(config: Config) -> length_control.Gamed | None:
    """Returns the gamed baselines of `config.evaluate.gamed`; None where it is empty.

    Raises:
      ValueError: where it cannot be read, naming file and row.
    """
    source = config.evaluate.gamed
    return length_control.gamed(sources.read(source), source) if source else None


def metrics(
    run: Run, benchmark: Benchmark, artefact: str, answers: Sequence[Answer], *, direct: bool
) -> dict[str, dict[str, Any]]:
    """Returns win rates of a model's answers to AlpacaEval, and writes these for its annotators.

    The written file has the layout of the official tool's `--model_outputs`. An answer without a
    final one is empty there, so it loses.

    Args:
      run: of which the settings and the folder are.
      benchmark: nothing is done of any but AlpacaEval.
      artefact: the model's folder of answers in the run.
      answers: to the benchmark.
      direct: whether the model does not reason.
    """
    if benchmark.name != alpaca_eval.NAME:
        return {}
    asked = [(one.question, text.final_answer(one.response, direct) or "") for one in answers]
    name = artefact.removeprefix("evals/")
    rows = [{"instruction": of, "output": said, "generator": name} for of, said in asked]
    jsonl.write_json(run.workdir / artefact / OUTPUTS, rows)
    control = gamed(run.config)
    found = preferences.metrics(
        asked,
        recorded(run.config),
        run.config.evaluate.annotations,
        control,
        [_number(one) for one in answers] if control else (),
    )
    if found and not any(figure["n"] for figure in found.values()):
        log.warning(
            "evaluate %s: none of its %d answers has a preference in %s; it must be made of %s",
            name,
            len(asked),
            run.config.evaluate.annotations,
            run.workdir / artefact / OUTPUTS,
        )
    elif control and any(not figure["n"] for figure in found.values()):
        log.warning(
            "evaluate %s: no length-controlled win rate: it needs an annotation of each of the %d"
            " instructions in %s, and found %d answers",
            name,
            len(control.difficulty),
            control.source,
            len(asked),
        )
    return found


def _number(answer: Answer) -> int:
    """Returns the place of an answer's instruction in AlpacaEval's order, from 0."""
    return int(answer.id.rpartition("/")[2]) - 1
