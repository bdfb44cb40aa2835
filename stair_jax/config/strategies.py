"""The ways to find an answer at test time, by name. Floor 0: imports no JAX."""

import dataclasses
import re

ALIASES = {"best_of_n": "best_of_8", "beam": "beam_2x4"}  # sizes of the paper (section 3.3)
SAMPLED = ("best_of", "vote_of", "random_of", "oracle_of")  # that choose among whole responses
STEPWISE = ("beam", "diverse", "lookahead")  # that choose step by step
MCTS = "mcts"  # that grows a search tree
_LEAST_MCTS = 2  # iterations: the first one only looks at the root
_UNREAD = ("greedy", "random_of", "oracle_of")  # that ask no reward model
_FORMS = (*(f"{kind}_N" for kind in (*SAMPLED, MCTS)), *(f"{kind}_WxM" for kind in STEPWISE))


@dataclasses.dataclass(frozen=True)
class Strategy:
    """A way to find an answer.

    Attributes:
      kind: "greedy", `MCTS`, or one of `SAMPLED` and `STEPWISE`.
      width: responses sampled, beams or subtrees kept, iterations of the search; 1 for greedy.
      each: successors of a beam; 1 for all that have none.
    """

    kind: str
    width: int = 1
    each: int = 1

    @property
    def name(self) -> str:
        """What it is called in settings and results."""
        if self.kind == "greedy":
            return "greedy"
        size = f"{self.width}x{self.each}" if self.kind in STEPWISE else f"{self.width}"
        return f"{self.kind}_{size}"

    @property
    def reads(self) -> bool:
        """Returns whether it asks a reward model."""
        return self.kind not in _UNREAD


GREEDY = Strategy("greedy")


def parse(name: str) -> Strategy:
    """Returns the strategy of a name.

    Raises:
      ValueError: for a name that is none, saying which there are.
    """
    if name == "greedy":
        return GREEDY
    found = re.fullmatch(r"([a-z_]+)_([1-9]\d*)(?:x([1-9]\d*))?", ALIASES.get(name, name))
    if found:
        kind, width, each = found[1], int(found[2]), int(found[3] or 1)
        known = (*SAMPLED, MCTS) if found[3] is None else STEPWISE
        if kind in known and (kind != MCTS or width >= _LEAST_MCTS):
            return Strategy(kind, width, each)
    raise ValueError(
        f"{name!r} is none of greedy, {', '.join(_FORMS)} with sizes above 0 (of {MCTS} from"
        f" {_LEAST_MCTS}), or {', '.join(ALIASES)}"
    )


def parse_all(names: tuple[str, ...]) -> tuple[Strategy, ...]:
    """Returns the strategies of some names, each once; ValueError for the first bad one."""
    return tuple(dict.fromkeys(map(parse, names)))
