"""The trees of a round on disk, as stage search finds and leaves them."""

import collections
import functools
import logging
from collections.abc import Callable, Sequence

from stair_jax.config import Config
from stair_jax.config.schema import SearchConfig
from stair_jax.config.sources import is_world
from stair_jax.records import Prompt, Tree
from stair_jax.run import worlds
from stair_jax.run.search_sizes import tree_bytes
from stair_jax.run.workdir import Run
from stair_jax.search import forged, official, roots
from stair_jax.search.tree_file import TreeFile

log = logging.getLogger(__name__)

Further = Callable[[Tree], Sequence[Prompt]]


def refuse_numbered(run: Run, name: str) -> None:
    """Refuses trees that an earlier version has begun, which knew prompts of files by their row."""
    entry = run.lineage.entries.get(name, {})
    by_row = not is_world(run.config.data.prompts) and "inputs" not in entry
    if by_row and run.lineage.binds(name):
        raise ValueError(
            f"{name} was begun by a version that knew prompts by row; finish it with that one,"
            f" or {run.lineage.way_out(name)}"
        )


def further(config: Config) -> Further | None:
    """Returns what says which trees follow one that is whole: those behind a bad first step.

    None where `search.roots` asks for none.
    """
    if not config.search.roots:
        return None
    settings = SearchConfig.of(config.search)
    world = worlds.of(config.data.prompts)
    forge = world.forge if world else forged.forged_step
    return functools.partial(roots.behind_bad_steps, config=settings, forge=forge, seed=config.seed)


def asked_of(every: Sequence[Prompt], trees: TreeFile, follows: Further | None) -> Sequence[Prompt]:
    """Returns a round's prompts, and those that follow the trees that are there already.

    Raises:
      ValueError: where a prompt has the id of a tree that would follow another one's.
    """
    if follows is None:
        return every
    by_id = {prompt.id: prompt for prompt in every}
    more = [
        prompt
        for tree in trees
        if by_id.get(tree.prompt.id) == tree.prompt
        for prompt in follows(tree)
    ]
    if clash := sorted(by_id.keys() & {roots.id_behind(id) for id in by_id}):
        raise ValueError(
            f"config.search.roots: id {clash[0]!r} of a prompt is kept for a further tree, expected"
            f" none that ends in {roots.SUFFIX!r}"
        )
    return [*every, *more]


def to_come(config: Config, left: Sequence[Prompt]) -> int:
    """Returns how many trees are to be grown at most: of these prompts, and what follows them."""
    settings = SearchConfig.of(config.search)
    return len(left) + sum(roots.is_due(p, settings, seed=config.seed) for p in left)


def tell_behind(name: str, trees: TreeFile) -> None:
    """Says what the trees behind bad steps begin behind."""
    kinds = collections.Counter(tree.prompt.meta.get(roots.KIND, "") for tree in trees)
    del kinds[""]
    if kinds:
        said = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
        log.info("%s: %d trees behind bad first steps: %s", name, kinds.total(), said)


def keep_what_is_asked(name: str, trees: TreeFile, asked: Sequence[Prompt]) -> None:
    """Drops trees whose question is asked no more: rows come, go and move between two starts."""
    there = len(trees)
    if dropped := trees.keep(asked):
        said = "%s: %d of %d trees dropped, their prompts have changed or are gone"
        log.warning(said, name, dropped, there)


def bytes_of_one(run: Run, trees: TreeFile) -> int:
    """Returns about how many bytes a tree takes: as those that are there, or by the settings."""
    if len(trees):
        return trees.path.stat().st_size // len(trees)
    return tree_bytes(run.config)


def export_official(name: str, trees: TreeFile) -> None:
    """Writes official.json, which knows one question and nothing of how a response began."""
    plain = [tree for tree in trees if not (tree.prompt.before or tree.prompt.prefill)]
    if left := len(trees) - len(plain):
        said = "%s: %d trees of conversations or begun responses are not in official.json"
        log.warning(said, name, left)
    official.write(trees.path.with_name("official.json"), plain)
