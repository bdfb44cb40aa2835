"""A benchmark: prompts, what an answer to one counts as, and what is measured of the answers."""

import dataclasses
from collections.abc import Callable, Mapping

from stair_jax.records import Prompt

Outcome = Callable[[Prompt, str, bool], str]
MALFORMED = "malformed"  # the outcome of a response without a final answer, in every benchmark


@dataclasses.dataclass(frozen=True, kw_only=True)
class Benchmark:
    """What models are asked, and how their answers are read.

    Attributes:
      name: in settings, results and names of files.
      prompts: with ids that differ.
      metrics: metric -> the outcome of which it is the share.
      outcome: of a prompt's whole response; its last argument says whether all of the response is
        the answer, of a model that does not reason.
      merit: how good an outcome is, where the truth is known.
      judged: whether the answers are for the run's judge, for nobody here knows the truth.
      source: what the prompts are, in a word or two.
    """

    name: str
    prompts: tuple[Prompt, ...]
    metrics: Mapping[str, str]
    outcome: Outcome
    merit: Callable[[str], float] | None
    judged: bool
    source: str
