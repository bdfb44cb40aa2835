"""Why trees gave no pair or row to train on, and what would change that."""

from collections.abc import Mapping

from stair_jax import text
from stair_jax.config.schema import PairsConfig, PrmConfig
from stair_jax.records import Tree


class Causes:
    """Notes of each tree what pairs hang on; says at the end what stood in their way."""

    def __init__(self) -> None:
        self._trees = self._alike = self._whole = self._closed = self._answers = 0
        self._widest, self._best = 0.0, -float("inf")  # gap of siblings, value of a step

    def note(self, tree: Tree) -> None:
        """Takes a tree."""
        visited = [(node.parent, node.value) for node in tree.nodes[1:] if node.visits]
        values = [value for _, value in visited]
        self._trees += 1
        self._alike += len(set(values)) < 2
        self._answers += int(tree.counters.get("judged", 0))
        self._best = max([self._best, *values])
        siblings: dict[int, list[float]] = {}
        for parent, value in visited:
            siblings.setdefault(parent, []).append(value)
        gaps = [max(found) - min(found) for found in siblings.values()]
        self._widest = max([self._widest, *gaps])
        ends = [i for i, node in enumerate(tree.nodes) if node.terminal]
        answers = ["".join(step.text for step in tree.path(i)) for i in ends]
        self._whole += len(answers)
        self._closed += sum(text.final_answer(answer) is not None for answer in answers)

    def of_values(self) -> str | None:
        """Returns what is wrong with all values, and what to change; None where they differ."""
        if self._best == -float("inf"):
            return (
                f"no step has a value, for none of the {self._answers} answers that were judged has"
                f" a score: either they have no closed block {text.OUTPUT} ... {text.OUTPUT_END},"
                " then teach the format longer in stage sft, or the judge gives no score: judge/ in"
                " metrics.jsonl counts why, and too_long there asks for more"
                " config.engine.max_context"
            )
        if self._alike < self._trees:
            return None
        if not self._closed:
            return (
                f"all values of a tree are equal, for none of {self._whole} whole responses in the"
                f" trees has a closed block {text.OUTPUT} ... {text.OUTPUT_END}; teach the format"
                " longer in stage sft, or raise config.search.max_depth, max_step_tokens and"
                " max_rollout_tokens where responses are cut"
            )
        return (
            "all values of a tree are equal, the judge finds its answers alike; ask another"
            " judge (config.judge), harder questions, or draw more widely"
            " (config.search.temperature)"
        )

    def of_none(self, c: PairsConfig, dropped: Mapping[str, int]) -> str:
        """Returns why there is no pair, and what to change.

        Args:
          c: what makes a pair.
          dropped: candidates by the rule that dropped them; see `search.pairs`.
        """
        if said := self.of_values():
            return said
        advice = {
            # The rule that the best candidates failed, the last one first.
            "too_long": f"what is left is longer than config.pairs.max_tokens={c.max_tokens}",
            "not_good": f"the best value of a step is {self._best:.3g}, a chosen one needs"
            f" config.pairs.good_value_safety={c.good_value_safety:g} or"
            f" good_value_helpfulness={c.good_value_helpfulness:g}; lower them, or grow more trees",
            "small_gap": f"the widest gap between siblings is {self._widest:.3g}, it must exceed"
            f" config.pairs.min_value_gap={c.min_value_gap:g}; lower that, or grow more trees",
            "few_visits": f"steps have fewer than config.pairs.min_visits={c.min_visits} visits;"
            " lower that, or raise config.search.iterations",
            "unvisited": "steps were not visited; raise config.search.iterations",
            "one_sided": "no tree has good and bad whole responses; lower"
            f" config.pairs.min_value_gap={c.min_value_gap:g}, take steps too"
            " (config.pairs.terminal_only=false), or grow more trees",
            "between": "whole responses are neither good nor bad; lower"
            f" config.pairs.min_value_gap={c.min_value_gap:g} or the good values",
        }
        alone = (
            "no step has a sibling to be compared with; raise config.search.num_children or"
            " config.search.temperature"
        )
        return next((said for rule, said in advice.items() if dropped.get(rule)), alone)

    def of_no_row(self, c: PrmConfig, dropped: Mapping[str, int]) -> str:
        """Returns why a reward model has no row to train on, and what to change.

        Args:
          c: what makes a row.
          dropped: nodes and pairs by the rule that dropped them; see `search.comparisons`.
        """
        if not self._trees:
            return "all of them are set aside; lower config.prm.eval_share, or grow more trees"
        if said := self.of_values():
            return said
        advice = {
            "small_gap": f"the widest gap between siblings is {self._widest:.3g}, a pair's must"
            f" exceed config.prm.min_value_gap={c.min_value_gap:g}; lower that",
            "identical": "the steps of a pair are the same; draw more widely"
            " (config.search.temperature)",
            "few_visits": f"steps have fewer than config.prm.min_visits={c.min_visits} visits;"
            " lower that, or raise config.search.iterations",
        }
        alone = (
            "no step has another one to be compared with; raise config.search.iterations or"
            " config.search.num_children"
        )
        left_out = ", ".join(f"{count} {rule}" for rule, count in sorted(dropped.items()))
        said = next((said for rule, said in advice.items() if dropped.get(rule)), alone)
        return f"{said} (left out: {left_out or 'nothing'})"
