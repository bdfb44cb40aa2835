"""A model goes on from reasoning that was changed: interventions on its greedy answers, on disk.

What is there already is not asked again. `evals.causal` has the interventions and their figures.
"""

import logging
import pathlib
from collections.abc import Mapping, Sequence

from stair_jax import jsonl
from stair_jax.config.strategies import GREEDY
from stair_jax.config.words import split_csv
from stair_jax.evals import causal
from stair_jax.evals.benchmark import Benchmark
from stair_jax.records import Answer, Prompt
from stair_jax.run.answerer import Answerer, Reply
from stair_jax.run.answers import answers
from stair_jax.run.hashes import digest_of
from stair_jax.run.results import ModelAnswers
from stair_jax.run.workdir import Run

log = logging.getLogger(__name__)

Found = Mapping[str, causal.Figures]  # by benchmark


class Intervener:
    """Interventions on the greedy answers of one model.

    Args:
      run: the run.
      answerer: the model.
      asked: all benchmarks; the answers to those with options have no steps.
      greedy: the model's greedy answers to them.
    """

    def __init__(
        self, run: Run, answerer: Answerer, asked: Sequence[Benchmark], greedy: ModelAnswers
    ):
        self._run, self._answerer, self._greedy = run, answerer, greedy
        self._asked = asked
        self._artefact = f"evals/{answerer.model.name}/interventions"
        kinds = split_csv(run.config.evaluate.interventions)
        self._made = {
            one.name: causal.interventions(
                one.prompts,
                greedy.of[one.name],
                kinds,
                seed=run.config.seed,
                forge=one.forge or causal.forged_step,
            )
            for one in self._asked
        }
        self._originals = {
            prompt.id: (one, prompt) for one in self._asked for prompt in one.prompts
        }

    def run(self) -> Found:
        """Asks what is still unanswered, and returns the figures of each benchmark."""
        model = self._answerer.model
        self._run.begin(self._artefact, "evaluate.interventions", model.parents)
        folder = self._run.workdir / self._artefact
        folder.mkdir(parents=True, exist_ok=True)
        self._answer(
            folder, {row.id: row for one in self._asked for row in self._read(folder, one)}
        )
        rows = {one.name: self._read(folder, one) for one in self._asked}
        for name, some in rows.items():
            jsonl.write_jsonl(folder / f"{name}.jsonl", some)
        content = "\n".join(repr(row) for some in rows.values() for row in some)
        count = sum(map(len, rows.values()))
        self._run.lineage.finish(self._artefact, digest_of(content), interventions=count)
        found = {
            name: causal.figures(self._made[name], self._greedy.of[name], some)
            for name, some in rows.items()
        }
        self._tell(found)
        return found

    def _read(self, folder: pathlib.Path, benchmark: Benchmark) -> list[Answer]:
        """Returns the rows on disk of today's interventions, in their order; of two the later."""
        path = folder / f"{benchmark.name}.jsonl"
        jsonl.mend_jsonl(path)
        rows = {r.id: r for r in jsonl.read_jsonl(path, Answer)} if path.exists() else {}
        made = self._made[benchmark.name]
        return [rows[p.id] for p in made if p.id in rows and answers(rows[p.id], p)]

    def _answer(self, folder: pathlib.Path, have: Mapping[str, Answer]) -> None:
        todo = [p for made in self._made.values() for p in made if p.id not in have]
        name, count = self._answerer.model.name, sum(map(len, self._made.values()))
        log.info("evaluate %s: %d interventions, %d of them to be asked", name, count, len(todo))
        if not todo:
            return
        room = {prompt.id: self._room(prompt) for prompt in todo}
        self._answerer.limits.update(room)

        def replied(prompt: Prompt, reply: Reply) -> None:
            row = self._row(prompt, reply)
            journal.add(folder / f"{row.benchmark}.jsonl", row)

        some = [prompt for prompt in todo if room[prompt.id] > 0]
        with jsonl.Journal() as journal:
            passed = self._answerer.ask(GREEDY, some, replied)
        if lost := len(passed) + len(todo) - len(some):
            log.warning("evaluate %s: %d interventions had no room, and are undecided", name, lost)

    def _room(self, prompt: Prompt) -> int:
        """Returns how many tokens are left of a response's limit behind the kept and new steps.

        A response that was cut out and continued then ends where the original could have ended.
        """
        _, original = self._originals[causal.original(prompt)]
        most = self._run.config.evaluate.max_tokens
        limit = min(self._answerer.limits.get(original.id, most), most)
        encode = self._answerer.policy.codec.encode
        return limit - len(encode(prompt.prefill)) + len(encode(original.prefill))

    def _row(self, prompt: Prompt, reply: Reply) -> Answer:
        benchmark, original = self._originals[causal.original(prompt)]
        response, direct = prompt.prefill + reply.text, self._answerer.model.direct
        return Answer(
            id=prompt.id,
            benchmark=benchmark.name,
            question=prompt.question,
            before=prompt.before,
            prefill=prompt.prefill,
            response=response,
            outcome=benchmark.grade_of(original, response, direct=direct, cut=reply.cut).outcome,
            tokens=reply.tokens,
            cut=reply.cut,
        )

    def _tell(self, found: Found) -> None:
        for benchmark, kinds in found.items():
            told = [
                f"{kind} changed {100 * places[key]['value']:.1f} % of {places[key]['n']:.0f}"
                for kind, places in kinds.items()
                for key in [causal.ANY if causal.ANY in places else "1"]
                if places[key]["n"]
            ]
            log.info(
                "evaluate %s: decisions on %s: %s",
                self._answerer.model.name,
                benchmark,
                ", ".join(told) or "no steps to change",
            )


def intervene(
    run: Run, answerer: Answerer, asked: Sequence[Benchmark], greedy: ModelAnswers
) -> Found | None:
    """Returns the figures of `config.evaluate.interventions` on a model's greedy answers.

    None where the setting is empty, or the model does not reason; the latter is said in the log.
    """
    if not split_csv(run.config.evaluate.interventions):
        return None
    if answerer.model.direct:
        log.info("evaluate %s: no interventions, it does not reason", answerer.model.name)
        return None
    return Intervener(run, answerer, asked, greedy).run()


def tell(run: Run, found: Mapping[str, Found]) -> None:
    """Writes evals/causal.json and report/causal.md of all models, if there is anything to say."""
    if not found:
        return
    jsonl.write_json(run.workdir / "evals" / "causal.json", found)
    path = run.workdir / "report" / "causal.md"
    jsonl.write_text(path, causal.table(found))
    print(f"Whether the steps decide the answers: {path}.")
