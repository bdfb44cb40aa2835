"""Stage evaluate: every finished model against every benchmark; table, picture, results.json."""

import json
import logging
import pathlib

from stair_jax import records
from stair_jax.config import words
from stair_jax.engine.request import GREEDY, Request
from stair_jax.evals import miniature, report, statistics
from stair_jax.records import Answer, Prompt
from stair_jax.stages import policies
from stair_jax.stages.policies import Policy
from stair_jax.stages.run import Run, digest_of

log = logging.getLogger(__name__)


def run(run: Run) -> None:
    """Answers what is still unanswered, scores it, and writes the report."""
    results: dict[str, dict] = {}
    for name in (*policies.names(run), *policies.baselines(run)):
        results[name] = _evaluate(run, name)
    records.write_json(run.workdir / "evals" / "results.json", results)
    folder = run.workdir / "report"
    text = report.table(results)
    records.write_text(folder / "table.md", text)
    report.plot(results, folder / "rounds.png")
    print(f"\n{text}\nThe same in {folder / 'table.md'}, as a picture in {folder / 'rounds.png'}.")


def _evaluate(run: Run, name: str) -> dict[str, dict]:
    """Returns {benchmark: {metric: {value, n, low, high}}} of one model."""
    artefact, parent = f"evals/{name}", policies.artefact_of(name)
    run.begin(artefact, "evaluate", (parent,) if parent else ())
    folder, split = run.workdir / artefact, run.config.evaluate.split
    folder.mkdir(parents=True, exist_ok=True)
    todo: list[tuple[str, Prompt]] = []
    for benchmark in words(run.config.evaluate.benchmarks):
        have = {answer.id for answer in _answers(folder, benchmark)}
        every = miniature.prompts(benchmark, split)
        todo += [(benchmark, prompt) for prompt in every if prompt.id not in have]
    if todo:
        log.info("evaluate %s: %d prompts", name, len(todo))
        _answer(run, policies.load(run, name), todo, folder)
    found, content = {}, ""
    for benchmark in words(run.config.evaluate.benchmarks):
        answers = sorted(_answers(folder, benchmark), key=lambda answer: answer.id)
        records.write_jsonl(folder / f"{benchmark}.jsonl", answers)
        metrics = miniature.METRICS[benchmark]
        found[benchmark] = statistics.shares([a.outcome for a in answers], metrics)
        content += "\n".join(map(repr, answers))
    run.lineage.finish(artefact, digest_of(content), results=json.loads(json.dumps(found)))
    return found


def _answers(folder: pathlib.Path, benchmark: str) -> list[Answer]:
    path = folder / f"{benchmark}.jsonl"
    records.mend_jsonl(path)
    return records.read_jsonl(path, Answer) if path.exists() else []


def _answer(run: Run, policy: Policy, todo: list[tuple[str, Prompt]], folder: pathlib.Path) -> None:
    """Decodes greedily and appends each answer as it comes."""
    engine = policies.engine_for(run, policy)
    engine.compile([GREEDY])
    asked = {prompt.id: (benchmark, prompt) for benchmark, prompt in todo}
    for _, prompt in todo:
        root = engine.root(policy.codec.prompt_ids(prompt.question))
        engine.submit(
            Request(
                id=prompt.id, prefix=root, key=(prompt.id,), stop="end", sampling=GREEDY,
                max_tokens=run.config.evaluate.max_tokens,
            )
        )  # fmt: skip
        engine.release(root)
    while not engine.idle:
        engine.step()
        for result in engine.collect():
            engine.release(result.prefix)
            benchmark, prompt = asked[str(result.id)]
            response = policy.codec.decode(result.ids)
            row = Answer(
                id=prompt.id, benchmark=benchmark, question=prompt.question, response=response,
                outcome=miniature.outcome(prompt, response, policies.is_direct(policy.name)),
                tokens=len(result.ids),
            )  # fmt: skip
            records.append_jsonl(folder / f"{benchmark}.jsonl", row)
