"""What a reward model says of one tree's nodes, in place of rollouts or beside them.

A value is read once, from the reward model's sequence of the parent, and serves every evaluation
of its node. Nothing was ever said of a prompt alone, so the root has the middle of the scale: its
value decides nothing, for no node competes with it.
"""

from collections.abc import Mapping, Sequence

from stair_jax.engine.request import Prefix
from stair_jax.rewards.prm import Item, Reading, RewardModelLike
from stair_jax.search.tree import ROOT

FROM_MODEL = ("prm", "mix")  # the choices of `search.value` that want a reward model


class Valuing:
    """The values of one tree's nodes, and the reward model's sequences that they are read from.

    Args:
      prompt_ids: of the tree's prompt.

    Raises:
      ValueError: where the reward model has no room for the prompt.
    """

    def __init__(self, model: RewardModelLike, prompt_ids: Sequence[int]):
        self._model = model
        self._prefixes: dict[int, Prefix] = {ROOT: model.root(prompt_ids)}  # by node, owned
        self._values = {ROOT: (model.readout.low + model.readout.high) / 2}
        self._asked: dict[int, Item] = {}

    @property
    def asked(self) -> Mapping[int, Item]:
        """What the reward model is to read, by node."""
        return self._asked

    def value(self, node: int) -> float:
        """Returns a node's value, on the scale of the rewards; KeyError where it was not read."""
        return self._values[node]

    def ask(self, node: int, parent: int, ids: Sequence[int]) -> bool:
        """Returns whether the value of a node is known; where it is not, it will be read.

        A step that had no room for a token says nothing new: its value is its parent's.
        """
        if node not in self._values and not ids:
            self._values[node] = self._values[parent]
        known = node in self._values
        if not known:
            self._asked[node] = (self._prefixes[parent], [ids])
        return known

    def take(self, node: int, reading: Reading) -> None:
        """Takes what the reward model read."""
        del self._asked[node]
        self._prefixes[node] = reading.prefix
        self._values[node] = float(self._model.readout.value(reading.raw[-1]))

    def close(self) -> None:
        """Gives all sequences back."""
        for prefix in self._prefixes.values():
            self._model.release(prefix)
        self._prefixes, self._asked = {}, {}
