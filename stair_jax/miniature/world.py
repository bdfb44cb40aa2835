"""The miniature as a world, for the stages of a run."""

from stair_jax.miniature import (
    forging,
    judging,
    preferences,
    rewriting,
    splits,
    tokenizer,
    verifier,
)
from stair_jax.records import SftRow
from stair_jax.world import Fills, World


def _judging_rows(seed: int, beside: int, fills: Fills) -> list[SftRow]:
    return judging.rows(seed, round(judging.SHARE * beside), fills)


def _examples() -> list[str]:
    return [splits.benchmark(name, "dev")[0].question for name in splits.BENCHMARKS]


MINIATURE = World(
    name="miniature",
    sft_rows=splits.sft_rows,
    answer_rows=preferences.direct_rows,
    judging_rows=_judging_rows,
    templates=judging.TEMPLATES,
    round_prompts=splits.round_prompts,
    prm_lessons=splits.prm_lessons,
    preferences=preferences.preferences,
    verify=verifier.verify,
    answer_of=verifier.answer_of,
    tokenizer=lambda judging_too: tokenizer.build(judging_too=judging_too),
    examples=_examples,
    forge=forging.for_rounds,
    rewrites=rewriting.for_rounds,
    is_plain=rewriting.is_plain,
)
