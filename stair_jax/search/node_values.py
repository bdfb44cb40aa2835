"""What a reward model says of one tree's nodes, in place of rollouts or beside them.

A value is read once, from the reward model's sequence of the parent, and serves every evaluation
of its node. Nothing was ever said of a prompt alone, so the root has the middle of the scale: its
value decides nothing, for no node competes with it. A score that is not finite is missing: reading
again would give the same, so the node has no value for good.
"""

from collections.abc import Mapping, Sequence

from stair_jax.engine.request import Prefix
from stair_jax.prm.reader import Item, Reading, RewardModelLike, finite
from stair_jax.search.tree import ROOT

FROM_MODEL = ("prm", "mix")  # the choices of `search.value` that want a reward model


class NodeValues:
    """The values of one tree's nodes, and the reward model's sequences that they are read from.

    Args:
      prompt_ids: of the tree's prompt.

    Raises:
      ValueError: where the reward model has no room for the prompt.
    """

    def __init__(self, model: RewardModelLike, prompt_ids: Sequence[int]):
        self._model = model
        self._prefixes: dict[int, Prefix] = {ROOT: model.root(prompt_ids)}  # by node, owned
        middle = (model.readout.low + model.readout.high) / 2
        self._values: dict[int, float | None] = {ROOT: middle}  # None: missing
        self._raw: dict[int, float | None] = {ROOT: None}
        self._asked: dict[int, Item] = {}

    @property
    def asked(self) -> Mapping[int, Item]:
        """What the reward model is to read, by node."""
        return self._asked

    def raw(self, node: int) -> float | None:
        """Returns a node's raw score; None where it is missing or was not read."""
        return self._raw.get(node)

    def value(self, node: int) -> float | None:
        """Returns a node's value, on the scale of the rewards; None where it is missing.

        Raises:
          KeyError: where it was not read.
        """
        return self._values[node]

    def missing(self, node: int) -> bool:
        """Returns whether a node was read and has no value."""
        return node in self._values and self._values[node] is None

    def ask(self, node: int, parent: int, ids: Sequence[int]) -> bool:
        """Returns whether the value of a node is known; where it is not, it will be read.

        A step that had no room for a token says nothing new: its value is its parent's.
        """
        if node not in self._values and not ids:
            self._values[node], self._raw[node] = self._values[parent], self._raw[parent]
        known = node in self._values
        if not known:
            self._asked[node] = (self._prefixes[parent], [ids])
        return known

    def take(self, node: int, reading: Reading) -> None:
        """Takes what the reward model read."""
        del self._asked[node]
        self._prefixes[node] = reading.prefix
        raw = self._raw[node] = finite(reading.raw[-1])
        self._values[node] = None if raw is None else float(self._model.readout.value(raw))

    def close(self) -> None:
        """Gives all sequences back."""
        for prefix in self._prefixes.values():
            self._model.release(prefix)
        self._prefixes, self._asked = {}, {}
