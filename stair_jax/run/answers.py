"""A model's answers to benchmarks, on disk as they come; what is there is not asked again."""

import dataclasses
import functools
import logging
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence

from stair_jax import jsonl
from stair_jax.config.strategies import GREEDY, Strategy
from stair_jax.evals.benchmark import Benchmark
from stair_jax.guided.beams import Found
from stair_jax.records import Answer, Prompt, Sample
from stair_jax.run import options
from stair_jax.run.answerer import Answerer, Drawn, Lost, Reply
from stair_jax.run.hashes import digest_of
from stair_jax.run.workdir import Run

log = logging.getLogger(__name__)

Take = Callable[[Answer], None]
_SHOWN = 10  # prompts without an answer that the log names


def answers(row: Answer | Sample, prompt: Prompt) -> bool:
    """Returns whether a row on disk is of what a prompt asks today, its earlier turns included."""
    asked = prompt.question, prompt.before, prompt.prefill
    return (row.question, row.before, row.prefill) == asked


class AnswerGenerator:
    """A model that answers benchmarks.

    Args:
      run: the run.
      answerer: the model.
      benchmarks: whose prompts' ids differ.
      strategies: all that it is to answer with; those that choose among samples share them.
    """

    def __init__(
        self,
        run: Run,
        answerer: Answerer,
        benchmarks: Sequence[Benchmark],
        strategies: Iterable[Strategy],
    ):
        self._run, self._answerer, self._benchmarks = run, answerer, benchmarks
        self._sampled = [s for s in strategies if s.of.samples]
        self._of_prompt = {prompt.id: (b, prompt) for b in benchmarks for prompt in b.prompts}

    def answer(self, strategy: Strategy, have: Mapping[str, Answer], take: Take) -> None:
        """Answers every prompt that has no answer yet, and hands each on as it comes.

        Args:
          strategy: how.
          have: answers by prompt id; one to another question under the same id is none.
          take: takes each new one.

        Raises:
          ValueError: where the reward model is not there.
        """
        todo = [
            prompt
            for id, (_, prompt) in self._of_prompt.items()
            if id not in have or not answers(have[id], prompt)
        ]
        todo = self._meant_for_it(strategy, todo)
        if offered := [prompt for prompt in todo if self._of_prompt[prompt.id][0].options]:
            if strategy == GREEDY:
                self._choose_options(offered, take)
            todo = [prompt for prompt in todo if not self._of_prompt[prompt.id][0].options]
        if not todo:
            return
        if strategy.of.samples:
            self._choose(strategy, todo, take)
            return

        def replied(prompt: Prompt, reply: Reply) -> None:
            take(self._row(prompt, reply))

        self._tell(strategy.name, self._answerer.ask(strategy, todo, replied))

    def _meant_for_it(self, strategy: Strategy, todo: Sequence[Prompt]) -> list[Prompt]:
        """Returns the prompts that mean something to the model; the others are missing."""
        meant, others = [], {}
        for prompt in todo:
            if self._asks(self._of_prompt[prompt.id][0]):
                meant.append(prompt)
            else:
                others[prompt.id] = "its tags mean nothing to a model without reasoning"
        self._tell(strategy.name, others)
        return meant

    def _asks(self, benchmark: Benchmark) -> bool:
        return not (benchmark.reasons and self._answerer.model.direct)

    def _choose_options(self, todo: Sequence[Prompt], take: Take) -> None:
        """Answers with the likeliest of each prompt's options; no search changes what that is."""
        offered = {prompt.id: self._options_of(prompt) for prompt in todo}

        def chosen(prompt: Prompt, choice: options.Choice) -> None:
            benchmark, _ = self._of_prompt[prompt.id]
            response = offered[prompt.id][choice.likeliest]
            grade = benchmark.grade_of(prompt, response, direct=True, cut=False)
            take(
                Answer(
                    id=prompt.id,
                    benchmark=benchmark.name,
                    question=prompt.question,
                    before=prompt.before,
                    response=response,
                    outcome=grade.outcome,
                    tokens=0,
                    scored=choice.tokens,
                    logps=choice.logps,
                    unknown=choice.unknown,
                )
            )

        asked = [(prompt, offered[prompt.id]) for prompt in todo]
        self._tell("options", options.read(self._run, self._answerer.model, asked, chosen))

    def _options_of(self, prompt: Prompt) -> Sequence[str]:
        of = self._of_prompt[prompt.id][0].options
        assert of is not None, "asked of benchmarks with options alone"
        return of(prompt)

    def _row(self, prompt: Prompt, reply: Reply) -> Answer:
        benchmark, _ = self._of_prompt[prompt.id]
        return Answer(
            id=prompt.id,
            benchmark=benchmark.name,
            question=prompt.question,
            before=prompt.before,
            prefill=prompt.prefill,
            response=prompt.prefill + reply.text,
            outcome=self._outcome(prompt, prompt.prefill + reply.text, reply.cut),
            tokens=reply.tokens,
            scored=reply.scored,
            score=reply.score,
            cut=reply.cut,
            unknown=self._answerer.unknown_in(prompt),
        )

    def _outcome(self, prompt: Prompt, response: str, cut: bool) -> str:
        """Returns what a response counts as."""
        benchmark, direct = self._of_prompt[prompt.id][0], self._answerer.model.direct
        return benchmark.grade_of(prompt, response, direct=direct, cut=cut).outcome

    def _tell(self, label: str, passed_over: Mapping[str, str]) -> None:
        """Says which prompts got no answer; they are counted as missing."""
        name = self._answerer.model.name
        for id, reason in list(passed_over.items())[:_SHOWN]:
            log.warning("evaluate %s: %s: no answer to %s: %s", name, label, id, reason)
        if (more := len(passed_over) - _SHOWN) > 0:
            log.warning("evaluate %s: %s: and %d more", name, label, more)

    # Choosing among samples

    def _choose(self, strategy: Strategy, todo: Sequence[Prompt], take: Take) -> None:
        """Answers with one of the first `width` samples of each prompt."""
        lost = Lost()
        for prompt in todo:
            if not (some := self._samples[prompt.id][: strategy.width]):
                continue  # passed over
            benchmark, _ = self._of_prompt[prompt.id]
            merits = [benchmark.merits[s.outcome] for s in some] if benchmark.merits else []
            found = [Found(ids=sample.ids, raw=sample.raw) for sample in some]
            chosen = self._answerer.choose(strategy, prompt, found, merits, lost)
            take(self._row(prompt, self._answerer.reply_of(strategy, found, chosen)))
        lost.tell(self._answerer.model.name, strategy.name)

    @functools.cached_property
    def _samples(self) -> dict[str, list[Sample]]:
        """All samples that the strategies choose among, by prompt; drawn where they are missing."""
        model = self._answerer.model
        artefact = f"evals/{model.name}/samples"
        self._run.begin(artefact, "evaluate.guided", model.parents)
        folder = self._run.workdir / artefact
        folder.mkdir(parents=True, exist_ok=True)
        rows = self._stored(folder)
        count = max(strategy.width for strategy in self._sampled)
        read = any(strategy.of.reads for strategy in self._sampled)
        self._draw(folder, rows, range(count), read)
        content = ""
        for benchmark in self._benchmarks:
            some = [row for key, row in sorted(rows.items()) if row.benchmark == benchmark.name]
            jsonl.write_jsonl(folder / f"{benchmark.name}.jsonl", some)
            content += "\n".join(repr((row.id, row.ordinal, row.ids)) for row in some)
        self._run.lineage.finish(artefact, digest_of(content), samples=len(rows))
        found: dict[str, list[Sample]] = {id: [] for id in self._of_prompt}
        for (id, _), row in sorted(rows.items()):
            found[id].append(row)
        return found

    def _stored(self, folder: pathlib.Path) -> dict[tuple[str, int], Sample]:
        """Returns the samples on disk, by prompt and number; a later row replaces an earlier.

        Of prompts that are asked no more, or ask something else, there are none.
        """
        rows = {}
        for benchmark in self._benchmarks:
            path = folder / f"{benchmark.name}.jsonl"
            jsonl.mend_jsonl(path)
            for row in jsonl.read_jsonl(path, Sample) if path.exists() else []:
                _, prompt = self._of_prompt.get(row.id, (None, None))
                if prompt and (not row.question or answers(row, prompt)):
                    rows[row.id, row.ordinal] = row
        return rows

    def _draw(
        self, folder: pathlib.Path, rows: dict[tuple[str, int], Sample], numbers: range, read: bool
    ) -> None:
        """Draws the samples that are missing, reads those unread, and appends both."""
        missing = {
            id: [number for number in numbers if (id, number) not in rows]
            for id, (benchmark, _) in self._of_prompt.items()
            if not benchmark.options and self._asks(benchmark)
        }
        unread = {
            id: [rows[id, n] for n in numbers if read and (id, n) in rows and not rows[id, n].raw]
            for id in missing
        }
        todo = [self._of_prompt[id][1] for id in missing if missing[id] or unread[id]]
        if not todo:
            return

        def drawn(prompt: Prompt, what: Drawn) -> None:
            fresh = [
                self._sample(prompt, number, one)
                for number, one in zip(missing[prompt.id], what[0], strict=True)
            ]
            later = [
                dataclasses.replace(row, raw=one.raw)
                for row, one in zip(unread[prompt.id], what[1], strict=True)
            ]
            for row in (*fresh, *later):
                journal.add(folder / f"{row.benchmark}.jsonl", row)
                rows[row.id, row.ordinal] = row

        ids = {id: [row.ids for row in some] for id, some in unread.items()}
        label = f"{len(numbers)} samples"
        with jsonl.Journal() as journal:
            self._tell(label, self._answerer.draw(label, todo, missing, ids, drawn, read=read))

    def _sample(self, prompt: Prompt, ordinal: int, found: Found) -> Sample:
        benchmark, _ = self._of_prompt[prompt.id]
        response = prompt.prefill + self._answerer.text_of(found.ids)
        return Sample(
            id=prompt.id,
            benchmark=benchmark.name,
            ordinal=ordinal,
            ids=found.ids,
            response=response,
            outcome=self._outcome(prompt, response, self._answerer.is_cut(found.ids)),
            raw=found.raw,
            question=prompt.question,
            before=prompt.before,
            prefill=prompt.prefill,
        )
