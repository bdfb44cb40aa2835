"""The ways to find an answer at test time, by name. Floor 0: imports no JAX.

A new one is a row in `KINDS` and a function under the same name in `guided/`: in
`beams.PLANS`, or in `selection.CHOICES` where it chooses among sampled responses.
"""

import dataclasses
import re
from typing import Literal

ALIASES = {"best_of_n": "best_of_8", "beam": "beam_2x4"}  # sizes of the paper (section 3.3)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kind:
    """A family of strategies, which differ by their sizes.

    Attributes:
      sizes: what stands behind its name.
      samples: whether it chooses among whole responses, which it shares with others that do.
      reads: whether it asks a reward model.
      truth: whether it needs the truth, as a comparison may.
      greedy: which continuations are drawn greedily.
      least: the first size is this or more.
    """

    sizes: Literal["", "N", "WxM"]
    samples: bool = False
    reads: bool = True
    truth: bool = False
    greedy: Literal["all", "some", "none"] = "none"
    least: int = 1


MCTS = "mcts"  # grows a search tree, whose first iteration only looks at the root
KINDS = {
    "greedy": Kind(sizes="", reads=False, greedy="all"),
    "best_of": Kind(sizes="N", samples=True),
    "vote_of": Kind(sizes="N", samples=True),
    "random_of": Kind(sizes="N", samples=True, reads=False),
    "oracle_of": Kind(sizes="N", samples=True, reads=False, truth=True),
    MCTS: Kind(sizes="N", least=2),
    "beam": Kind(sizes="WxM"),
    "diverse": Kind(sizes="WxM"),
    "lookahead": Kind(sizes="WxM", greedy="some"),
}
_FORMS = tuple(f"{name}_{kind.sizes}" for name, kind in KINDS.items() if kind.sizes)


@dataclasses.dataclass(frozen=True)
class Strategy:
    """A way to find an answer.

    Attributes:
      kind: a name in `KINDS`.
      width: responses sampled, beams or subtrees kept, iterations of the search; 1 for greedy.
      each: successors of a beam; 1 for all that have none.
    """

    kind: str
    width: int = 1
    each: int = 1

    @property
    def name(self) -> str:
        """What it is called in settings and results."""
        sizes = {"": "", "N": f"_{self.width}", "WxM": f"_{self.width}x{self.each}"}
        return self.kind + sizes[self.of.sizes]

    @property
    def of(self) -> Kind:
        """The family."""
        return KINDS[self.kind]


GREEDY = Strategy("greedy")


def parse(name: str) -> Strategy:
    """Returns the strategy of a name.

    Raises:
      ValueError: for a name that is none, saying which there are.
    """
    if name == GREEDY.name:
        return GREEDY
    found = re.fullmatch(r"([a-z_]+)_([1-9]\d*)(?:x([1-9]\d*))?", ALIASES.get(name, name))
    if found:
        kind, width, each = KINDS.get(found[1]), int(found[2]), int(found[3] or 1)
        sizes = "N" if found[3] is None else "WxM"
        if kind and kind.sizes == sizes and width >= kind.least:
            return Strategy(found[1], width, each)
    raise ValueError(
        f"{name!r} is none of greedy, {', '.join(_FORMS)} with sizes above 0 (of {MCTS} from"
        f" {KINDS[MCTS].least}), or {', '.join(ALIASES)}"
    )


def parse_all(names: tuple[str, ...]) -> tuple[Strategy, ...]:
    """Returns the strategies of some names, each once; ValueError for the first bad one."""
    return tuple(dict.fromkeys(map(parse, names)))
