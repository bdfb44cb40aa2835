"""Sets for a small model, without any paid one: worked solutions, refusals and look-alikes.

Demonstrations are GSM8K's training solutions as steps, refusals of AdvBench and of HarmBench's
validation behaviours, and harmless look-alikes. Rounds ask other rows of GSM8K, AdvBench and the
look-alikes. Attacks are AdvBench rows in a framing. A part of them has a twin, a look-alike in the
very same framing, so that a framing alone is no reason to refuse. Whole families of framings are
kept out, for tests. A part of the harmful requests is asked as questions, and a part of the
look-alikes as requests, so that neither form tells what to do.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator

from stair_jax.config.words import split_csv
from stair_jax.data.corpora import jbb_templates
from stair_jax.data.recipe import PRM, Pool, Pools, Recipe, Sets
from stair_jax.data.seeds import Seed
from stair_jax.data.teaching import analyses, forms, framings, lookalikes, rationales
from stair_jax.data.teaching.framings import Framing
from stair_jax.data.teaching.lookalikes import Lookalike
from stair_jax.data.teaching.refusals import draws
from stair_jax.records import SftRow

Forms = Callable[[Iterable[Seed]], Iterable[Seed]]

_OF_HARMBENCH = 3  # a third of the refusals at most: it has 80 behaviours


def make(pools: Pools) -> Sets:
    """Returns demonstrations, and the prompts of the rounds and of the reward model.

    Raises:
      ValueError: where there are fewer seeds than are wanted, or `config.recipe.held_out` names a
        family that there is not, or all of them.
    """
    c, size = pools.config, pools.size
    harmful, solved = pools.pool("advbench"), pools.pool("gsm8k")
    alike, behaviours = pools.pool("lookalikes"), pools.pool("harmbench")
    allowed = _framings(pools)
    refusals, solutions, harmless = map(size, c.taught)
    taught, asked = (_turned(pools, share) for share in c.turned)
    of_harmbench = min(len(behaviours.seeds), refusals // _OF_HARMBENCH)
    demonstrations = pools.mixed(
        _taught(behaviours.take(of_harmbench, "taught"), pools.seed),
        _taught(taught(harmful.take(refusals - of_harmbench, "taught")), pools.seed),
        _taught(solved.take(solutions, "taught"), pools.seed),
        _taught(taught(alike.take(harmless, "taught")), pools.seed),
    )
    prompts: dict[str, list[Seed]] = {}
    of_rounds = zip(c.round_safety, c.round_helpful, c.round_jailbreak, strict=True)
    for number, (safety, helpful, jailbreak) in enumerate(of_rounds, start=1):
        attacked = asked(harmful.take(size(jailbreak), "round_jailbreak"))
        prompts[str(number)] = pools.mixed(
            asked(harmful.take(size(safety), "round_safety")),
            solved.take(size(helpful), "round_helpful"),
            asked(alike.take(size(c.lookalikes), "lookalikes")),
            _framed(attacked, alike, allowed, pools, asked),
        )
    prompts[PRM] = pools.mixed(
        asked(harmful.take(size(c.prm[0]), "prm")), solved.take(size(c.prm[1]), "prm")
    )
    bare = {name: [_asked(seed) for seed in some] for name, some in prompts.items() if some}
    return Sets(demonstrations=demonstrations, prompts=bare)


def _framings(pools: Pools) -> list[Framing]:
    """Returns the framings that attacks may have: ours and those of the templates that are here."""
    family = jbb_templates.FAMILY
    templates = [
        Framing(family, f"{family}/{seed.id}", seed.question)
        for seed in pools.pool("jbb_templates").seeds
    ]
    held_out, known = split_csv(pools.config.held_out), (*framings.FAMILIES, family)
    unknown = [name for name in held_out if name not in known]
    allowed = [f for f in (*framings.FRAMINGS, *templates) if f.family not in held_out]
    if unknown or not allowed:
        raise ValueError(
            f"config.recipe.held_out: {unknown or held_out}, expected some of {list(known)},"
            " and not all of them"
        )
    return allowed


def _framed(
    attacked: Iterable[Seed], alike: Pool, allowed: list[Framing], pools: Pools, asked: Forms
) -> Iterator[Seed]:
    """Yields attacks, and twins of so many that their share is `config.recipe.twins`."""
    for number, seed in enumerate(attacked, start=1):
        framing = framings.framing_of(seed.id, allowed, pools.seed)
        yield _in_framing(seed, framing)
        twins = pools.config.twins
        # The whole number is passed on every 1/twins-th time: twins are spread evenly.
        if int(number * twins) > int((number - 1) * twins):
            yield from (_in_framing(one, framing) for one in asked(alike.take(1, "twins")))


def _turned(pools: Pools, share: float) -> Forms:
    """Returns a function that asks such a share of seeds in their other form, if they have one."""

    def forms_of(found: Iterable[Seed]) -> Iterator[Seed]:
        for one in found:
            turned = one.meta.get(forms.TURNED)
            drawn = draws(one.id, pools.seed, "form").random() < share
            yield dataclasses.replace(one, question=turned) if turned and drawn else one

    return forms_of


def _in_framing(seed: Seed, framing: Framing) -> Seed:
    return dataclasses.replace(
        seed,
        id=f"{seed.id}@{framing.name}",
        question=framing.frame(seed.question),
        source=f"{seed.source}, framed",
        meta={**seed.meta, "framing": framing.name},
    )


def _taught(found: Iterable[Seed], seed: int) -> Iterator[Seed]:
    """Yields seeds with a response in steps."""
    for one in found:
        yield dataclasses.replace(one, response=_row(one, seed).response)


def _row(one: Seed, seed: int) -> SftRow:
    if one.type == "safety":
        return analyses.refusal_row(
            one.id,
            one.meta.get("goal", one.question),
            question=one.question,
            category=one.meta.get("category", ""),
            seed=seed,
        )
    if one.ground_truth is None:
        columns = {key: text for key, text in one.meta.items() if key != forms.TURNED}
        return lookalikes.row_of(one.id, Lookalike(**columns | {"question": one.question}), seed)
    found = rationales.steps_of(one.id, one.question, one.response, seed)
    assert isinstance(found, SftRow), "the corpus drops those that have no steps"
    return found


def _asked(seed: Seed) -> Seed:
    return dataclasses.replace(seed, response="")


RECIPE = Recipe(
    name="small",
    about="worked solutions, refusals and look-alikes for a small model; framed attacks",
    corpora=("advbench", "gsm8k", "lookalikes"),
    make=make,
    optional=("harmbench", "jbb_templates"),
)
