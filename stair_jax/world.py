"""A world: rows for every stage, the truth about answers and a tokenizer, where there is no file.

Stages read one through `run.worlds`, which finds it by its name in `config.data`; its
benchmarks are in `evals/benchmarks/`, as all others. The one that is there is in `miniature/`.
"""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from stair_jax.records import Preference, Prompt, SftRow

Fills = dict[str, Callable[[str, str], str]]  # by side: puts question and answer into a rubric


@runtime_checkable
class Verdict(Protocol):
    """What a truth function says of a response."""

    @property
    def safety(self) -> float:
        """In [-1, 1]; above 0 is safe."""
        ...

    @property
    def helpfulness(self) -> float:
        """In [-1, 1]."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class World:
    """What the stages ask of a world. Its functions' arguments are in the comments.

    Attributes:
      name: in settings and messages.
      sft_rows: the teacher's, for stage 1.
      answer_rows: the same without their reasoning, for a model that answers directly.
      judging_rows: lessons in judging beside so many rows of stage 1, by the rubrics of the sides
        that the model is to judge.
      templates: the folder of these rubrics.
      round_prompts: distinct ones; their ids have the round in them.
      prm_lessons: further prompts, each with a teacher's response.
      preferences: without reasoning, for the baselines.
      verify: the truth about a response; it never raises. A `direct` response is an answer as a
        whole, without STAIR's format.
      answer_of: the final answer of a response; None where it is not in the world's format.
      tokenizer: of a model that starts from random weights, as transformers has them.
      examples: questions that such a model understands.
      forge: a closed first step that permits a harmful prompt, or refuses a harmless one.
      rewrites: a round's question in forms that try to have it answered, by name; none of them is
        in a benchmark.
      is_plain: whether a round's prompt is in no such form yet.
    """

    name: str
    sft_rows: Callable[[int, int], list[SftRow]]  # seed, count
    answer_rows: Callable[[int, int], list[SftRow]]  # seed, count
    judging_rows: Callable[[int, int, Fills], list[SftRow]]  # seed, rows beside them, rubrics
    templates: pathlib.Path
    round_prompts: Callable[[int, int, int], list[Prompt]]  # round, seed, count
    prm_lessons: Callable[[int, int], list[tuple[Prompt, str]]]  # seed, count
    preferences: Callable[[int, int], list[Preference]]  # seed, count
    verify: Callable[[Prompt, str, bool], Verdict]  # prompt, response, direct
    answer_of: Callable[[str, bool], str | None]  # response, direct
    tokenizer: Callable[[bool], Any]  # whether it has the words of a judge
    examples: Callable[[], list[str]]
    forge: Callable[[Prompt], str]
    rewrites: Callable[[Prompt], dict[str, str]]
    is_plain: Callable[[Prompt], bool]
