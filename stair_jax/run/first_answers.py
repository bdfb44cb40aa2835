"""A look at the first answers of a round's search: a model without STAIR's format grows no trees.

All its answers are malformed, so all values are equal or missing, and no pair comes out of them.
"""

import dataclasses
import logging
from collections.abc import Iterable

from stair_jax import text
from stair_jax.config.stages import DPO, SEARCH, SFT
from stair_jax.records import Tree
from stair_jax.run import standing
from stair_jax.run.known_models import Model
from stair_jax.run.workdir import Run

log = logging.getLogger(__name__)

FEW = 0.5  # well-formed ones, a share of the answers: below it a round goes on with a warning; ours


@dataclasses.dataclass
class FirstAnswers:
    """Counts answers until there are enough, and then says what they are like.

    Args:
      run: whose `search.first_answers` and `search.least_well_formed` are meant.
      number: of the round.
      model: that answers.
      codec: of that model.
      trees: that are whole already. Their answers count, and where they are enough they were
        looked at when they came: a round that goes on is not stopped by what it has.
    """

    run: Run
    number: int
    model: Model
    codec: text.Codec
    trees: dataclasses.InitVar[Iterable[Tree]]

    def __post_init__(self, trees: Iterable[Tree]) -> None:
        self.answers = self.well_formed = self.tagless = self.cut = 0
        self._ends = tuple(self.codec.decode([id]) for id in sorted(self.codec.end_stop))
        for tree in trees:
            if not self.looking:
                return
            for node in range(len(tree.nodes)):
                if tree.nodes[node].terminal:
                    self._count("".join(step.text for step in tree.path(node)))

    @property
    def looking(self) -> bool:
        """True as long as more answers are wanted."""
        return self.answers < self.run.config.search.first_answers

    def __call__(self, response: str) -> None:
        """Takes an answer.

        Raises:
          ValueError: at the last one that is looked at, where too few have the format.
        """
        if not self.looking:
            return
        self._count(response)
        if not self.looking:
            self._say(stop=True)

    def close(self) -> None:
        """Says what the answers are like where they were fewer than wanted."""
        if self.looking and self.answers:
            self._say(stop=False)

    def _count(self, response: str) -> None:
        self.answers += 1
        if text.final_answer(response) is not None:
            self.well_formed += 1
        elif not any(tag in response for tag in text.TAGS):
            self.tagless += 1
        elif not response.rstrip().endswith(self._ends):
            self.cut += 1

    def _say(self, *, stop: bool) -> None:
        """Raises ValueError or warns where few answers are well-formed."""
        share, least = self.well_formed / self.answers, self.run.config.search.least_well_formed
        if share >= FEW and share >= least:
            return
        said = (
            f"{SEARCH.artefact(self.number)}: {self.well_formed} of the first"
            f" {self.answers} answers have a closed block {text.OUTPUT} ... {text.OUTPUT_END}"
        )
        if stop and share < least:
            raise ValueError(
                f"{said}, expected {least:.0%} at least: {self._cause()}"
                " (config.search.first_answers=0 does not look)"
            )
        log.warning("%s, the others can have no score of their own: %s", said, self._cause())

    def _cause(self) -> str:
        """Returns why answers lack the format, and what to change."""
        s, malformed = self.run.config.search, self.answers - self.well_formed
        if 2 * self.cut > malformed:
            return (
                f"{self.cut} were cut amid their steps; raise config.search.max_rollout_tokens"
                f" ({s.max_rollout_tokens}) or max_step_tokens ({s.max_step_tokens})"
            )
        without = f"{self.tagless} have no tag at all; " if self.tagless else ""
        if self.model.stage is None:
            return (
                f"{without}no stage sft has taught the checkpoint the format; add it to"
                " config.stages"
            )
        if self.model.stage is not SFT:
            return (
                f"{without}stage dpo of the round before has lost the format; lower"
                " config.dpo.train.lr or raise config.dpo.sft_coef, with"
                f" --config.redo={DPO.artefact(self.number - 1)}"
            )
        known = self.run.lineage.entries[SFT.artefact()]
        stands = f" ({standing.in_words(known)})" if standing.FIGURES[0] in known else ""
        return f"{without}stage 1 has not taught the format{stands}; {standing.ADVICE}"
