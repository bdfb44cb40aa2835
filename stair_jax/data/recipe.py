"""A recipe: corpora in, the sets that a run trains and searches on out.

A new one is a file in `recipes/` with a `RECIPE`. `registered` finds it, and `config.data.recipe`
can name it.
"""

import dataclasses
import functools
import hashlib
import importlib
import pkgutil
from collections.abc import Callable, Iterable, Mapping, Sequence

from stair_jax.config.schema import RecipeConfig
from stair_jax.data import recipes
from stair_jax.data.formats import TYPES
from stair_jax.data.seeds import Seed

PRM, COT = "prm", "cot"  # names of sets of prompts, beside the numbers of the rounds
Refusal = Callable[[str, int], str]  # of a row's id and a seed


@dataclasses.dataclass(frozen=True)
class Sets:
    """What a recipe makes.

    Attributes:
      demonstrations: for stage 1; seeds with a response.
      preferences: for the baselines; seeds with two responses. A rejected one that is "" is to be
        sampled from the model that is trained.
      prompts: by the round's number as a text, "prm" for the reward model's, "cot" for those that a
        teacher is to answer.
    """

    demonstrations: list[Seed] = dataclasses.field(default_factory=list)
    preferences: list[Seed] = dataclasses.field(default_factory=list)
    prompts: dict[str, list[Seed]] = dataclasses.field(default_factory=dict)


class Pool:
    """Seeds of one corpus in an order drawn by the run's seed, of which some are taken in turn.

    Args:
      name: of the corpus, for messages.
      found: its seeds, in any order.
      seed: of the run.
    """

    def __init__(self, name: str, found: Iterable[Seed], seed: int):
        self._name, self._taken = name, 0
        self.seeds = in_drawn_order(found, seed)

    def first(self, count: int, key: str) -> list[Seed]:
        """Returns the first ones, whatever was taken.

        Args:
          count: how many.
          key: the setting that asks for them, for the message.

        Raises:
          ValueError: where there are not as many.
        """
        self._need(count, key)
        return self.seeds[:count]

    def take(self, count: int, key: str) -> list[Seed]:
        """Returns the next ones that were not taken yet; as `first`."""
        start = self._taken
        self._need(start + count, key)
        self._taken += count
        return self.seeds[start : self._taken]

    def _need(self, count: int, key: str) -> None:
        if count > len(self.seeds):
            raise ValueError(
                f"config.recipe.{key}: {count} seeds of {self._name} are wanted up to here, and"
                f" {len(self.seeds)} can be used; set config.recipe.scale lower"
            )


@dataclasses.dataclass(frozen=True)
class Pools:
    """What a recipe is given.

    Attributes:
      corpora: usable seeds by the corpus's name.
      config: sizes, which `size` scales.
      seed: of the run.
      refusal: writes one, in other words for another id.
    """

    corpora: Mapping[str, Sequence[Seed]]
    config: RecipeConfig
    seed: int
    refusal: Refusal

    def pool(self, name: str) -> Pool:
        """Returns a corpus, nothing of it taken yet; no seed of an optional one that is absent."""
        return Pool(name, self.corpora.get(name, ()), self.seed)

    def size(self, count: int) -> int:
        """Returns a size of the configuration times its scale; at least 1 of what is wanted."""
        return max(1, round(count * self.config.scale)) if count else 0

    def refused(self, seed: Seed) -> Seed:
        """Returns a seed whose chosen response is a refusal."""
        return dataclasses.replace(seed, chosen=self.refusal(seed.id, self.seed))

    def mixed(self, *parts: Iterable[Seed]) -> list[Seed]:
        """Returns several parts as one, mixed by the run's seed: a beginning is like the whole."""
        # Not by the order that they were taken in: the few of a small part come first there.
        every = (seed for part in parts for seed in part)
        return in_drawn_order(every, self.seed, "mixed")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """How sets are made.

    Attributes:
      name: in settings.
      about: one line for people.
      corpora: names of those that it reads.
      make: makes them.
      optional: names of further ones that it can do without; it reads those that lie somewhere.
    """

    name: str
    about: str
    corpora: tuple[str, ...]
    make: Callable[[Pools], Sets]
    optional: tuple[str, ...] = ()


@functools.cache
def registered() -> dict[str, Recipe]:
    """Returns the recipes that `config.data.recipe` can name, in the order of their files."""
    names = [found.name for found in pkgutil.iter_modules(recipes.__path__)]
    modules = [importlib.import_module(f"{recipes.__name__}.{name}") for name in names]
    return {module.RECIPE.name: module.RECIPE for module in modules}


def in_drawn_order(found: Iterable[Seed], seed: int, draw: str = "taken") -> list[Seed]:
    """Returns seeds by a hash of their ids and the run's seed; more keep the others' order."""

    def rank(one: Seed) -> bytes:
        return hashlib.sha256(f"{seed}/{draw}/{one.id}".encode()).digest()

    return sorted(found, key=rank)


def shared_out(pools: Pools, found: Sequence[Seed]) -> dict[str, list[Seed]]:
    """Returns all prompts of a corpus shared out over the rounds, the reward model and a teacher.

    Each gets of each type the part that its number in `config.recipe` has in the sum of all.
    """
    c = pools.config
    taught = c.cot if c.teacher else (0, 0)
    harmful = map(sum, zip(c.round_safety, c.round_jailbreak, strict=True))
    wanted: dict[str, tuple[int, ...]] = {
        "safety": (*harmful, c.prm[0], taught[0]),
        "helpfulness": (*c.round_helpful, c.prm[1], taught[1]),
    }
    names = [*(str(k) for k in range(1, len(c.round_safety) + 1)), PRM, COT]
    sets: dict[str, list[Seed]] = {name: [] for name in names}
    for kind in TYPES:
        mine = in_drawn_order((seed for seed in found if seed.type == kind), pools.seed)
        total, start, asked = sum(wanted[kind]), 0, 0
        for name, part in zip(names, wanted[kind], strict=True):
            asked += part
            end = round(len(mine) * asked / total) if total else 0
            sets[name] += mine[start:end]
            start = end
    return {name: pools.mixed(some) for name, some in sets.items() if some}
