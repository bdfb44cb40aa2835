"""The figures that the verdicts of language models come to, of a model's answers at a time."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from stair_jax.evals.benchmark import Benchmark
from stair_jax.evals.judge_agreement import Judged
from stair_jax.evals.judge_prompts import JudgePrompt, Wording
from stair_jax.records import Answer
from stair_jax.run import judge_models, verdicts
from stair_jax.run.verdicts import Question, Replies


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdicts:
    """What the judges said of all answers.

    Attributes:
      judges: names of the models; () where nobody judges.
      wordings: that they were asked in, by the name of the prompt.
      replies: by judge and question.
      asked: all questions, in the order of the answers.
    """

    judges: Sequence[str] = ()
    wordings: Mapping[str, Wording] = dataclasses.field(default_factory=dict)
    replies: Replies = dataclasses.field(default_factory=dict)
    asked: Sequence[Question] = ()

    def metrics(
        self, benchmark: Benchmark, answers: Sequence[Answer], *, direct: bool
    ) -> dict[str, dict[str, Any]]:
        """Returns {figure: {value, n, low, high, missing, parse_failures, protocol}}.

        Several judges' figures have "@" and the judge behind their names. `missing` counts the
        prompts without a verdict, and `parse_failures` those among them with an unreadable reply.
        """
        asked = questions(benchmark, answers, self.wordings, direct=direct)
        found = {}
        for judge in self.judges:
            of_judge = [(one.prompt, self.replies[judge, one.id]) for one in asked]
            for name, metric in self._of(judge, benchmark, of_judge).items():
                found[name if len(self.judges) == 1 else f"{name}@{judge}"] = metric
        return found

    def _of(
        self,
        judge: str,
        benchmark: Benchmark,
        replies: Sequence[tuple[JudgePrompt, str | None]],
    ) -> dict[str, dict[str, Any]]:
        read = [(prompt, reply, _read(prompt, reply)) for prompt, reply in replies]
        prompts, found = judge_models.prompts_of(benchmark), {}
        for figure in dict.fromkeys(name for one in prompts for name in one.summaries):
            having = [one for one in prompts if figure in one.summaries]
            rows = [(reply, reading) for one, reply, reading in read if one in having]
            readings = [reading for _, reading in rows if reading]
            found[figure] = {
                **having[0].summaries[figure](readings),
                "missing": len(benchmark.prompts) - len(readings),
                "parse_failures": sum(reply is not None and not one for reply, one in rows),
                "protocol": self._protocol(judge, having),
            }
        return found

    def _protocol(self, judge: str, prompts: Sequence[JudgePrompt]) -> str:
        wordings = [self.wordings[one.name] for one in prompts]
        sources = " and ".join(source for one in wordings for source in one.sources)
        return f"{wordings[0].label} {sources}, judge {judge}"


def _named(one: Question) -> str:
    return f"{one.benchmark}, under {one.attack}" if one.attack else one.benchmark


def _read(prompt: JudgePrompt, reply: str | None) -> Any:
    return None if reply is None else prompt.read(reply)


def questions(
    benchmark: Benchmark,
    answers: Sequence[Answer],
    wordings: Mapping[str, Wording],
    *,
    direct: bool,
) -> list[Question]:
    """Returns what judges are asked about a model's answers to a benchmark."""
    prompts = {prompt.id: prompt for prompt in benchmark.prompts}
    return [
        one
        for answer in answers
        for one in verdicts.questions_of(
            benchmark, prompts[answer.id], answer, wordings, direct=direct
        )
    ]


def judged(asked: Sequence[Question], replies: Replies) -> list[Judged]:
    """Returns every judge's reply to every distinct question, with what it says.

    What was asked of a plain answer and of one under attack in the same words is the plain one's.
    """
    distinct: dict[str, Question] = {}
    for one in asked:
        distinct.setdefault(one.id, one)
    return [
        Judged(
            judge=judge,
            prompt=distinct[id].prompt.name,
            id=id,
            benchmark=_named(distinct[id]),
            request=distinct[id].request,
            answer=distinct[id].answer,
            reply=reply,
            reading=_read(distinct[id].prompt, reply),
        )
        for (judge, id), reply in replies.items()
    ]
