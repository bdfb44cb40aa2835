"""The keys of stage prepare's recipes: how many rows are made, and how a model's own are sampled.

What "paper" and "ours" stand for is said in `schema`.
"""

import dataclasses

from stair_jax.config import conditions
from stair_jax.config.knob import Section, knob
from stair_jax.config.ranges import FROM_0, FROM_1, MASS, Range


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecipeConfig(Section):
    """Sizes of what a recipe makes."""

    scale: float = knob(
        1.0,
        "share of the sizes below, and of all rows of other recipes, that is made",
        MASS,
        under=conditions.RECIPE,
    )
    safety: int = knob(
        22_000,
        "pairs of D with an unsafe response (paper A.1)",
        FROM_0,
        under=conditions.PAPER_RECIPE,
    )
    jailbreak: int = knob(
        3_000, "pairs of D on an attack (paper A.1)", FROM_0, under=conditions.PAPER_RECIPE
    )
    helpful: int = knob(
        25_000,
        "pairs of D on a helpful prompt (paper A.1)",
        FROM_0,
        under=conditions.PAPER_RECIPE,
    )
    cot: tuple[int, ...] = knob(
        (10_000, 10_000),
        "prompts that a teacher shall answer in steps: safety, helpful (paper 3.1); of the recipe"
        " own a part of each kind as large as this is beside the rounds'",
        under=conditions.COT_PROMPTS,
    )
    teacher: str = knob(
        "",
        "who answers these in steps, for stage 1: NAME@URL of an OpenAI-compatible server, its key"
        " is OPENAI_API_KEY; self: model.checkpoint in the engine; empty: nobody",
        under=conditions.COT_RECIPE,
    )
    instruction: str = knob(
        "",
        "file with what the teacher is told: {question} stands in it once, {refusal} where it is"
        " shown one; empty: ours",
        under=conditions.TEACHER,
    )
    teacher_attempts: int = knob(
        3,
        "replies to a prompt at most, each after one that was dropped (ours)",
        FROM_1,
        under=conditions.TEACHER,
    )
    teacher_temperature: float = knob(
        1.0,
        "temperature of the teacher's replies (ours)",
        FROM_0,
        under=(conditions.TEACHER, conditions.TEACHER_TEMPERATURE_TAKEN),
    )
    teacher_top_p: float = knob(
        1.0,
        "the least set of tokens of this probability is drawn from (ours)",
        MASS,
        under=(conditions.TEACHER, conditions.TEACHER_TOP_P_TAKEN),
    )
    teacher_max_tokens: int = knob(
        2_048,
        "tokens of a reply of the teacher at most (ours)",
        FROM_1,
        under=(conditions.TEACHER, conditions.TEACHER_MAX_TOKENS_TAKEN),
    )
    round_safety: tuple[int, ...] = knob(
        (5_000, 5_000, 5_000),
        "safety prompts of each round beside attacks (paper 3.1)",
        under=conditions.RECIPE,
    )
    round_helpful: tuple[int, ...] = knob(
        (5_000, 5_000, 5_000),
        "helpful prompts of each round (paper 3.1)",
        under=conditions.RECIPE,
    )
    round_jailbreak: tuple[int, ...] = knob(
        (0, 1_000, 2_000), "attacks of each round (paper 3.1)", under=conditions.RECIPE
    )
    prm: tuple[int, ...] = knob(
        (1_000, 1_000),
        "further prompts of the reward model: safety, helpful (ours)",
        under=conditions.RECIPE,
    )
    temperature: float = knob(
        1.0,
        "temperature of the model's own rejected responses (ours)",
        FROM_0,
        under=conditions.PAPER_RECIPE,
    )
    max_tokens: int = knob(
        1_024,
        "tokens of such a response at most; one that is cut is left out (ours)",
        FROM_1,
        under=conditions.PAPER_RECIPE,
    )
    taught: tuple[int, ...] = knob(
        (240, 300, 50),
        "demonstrations: refusals, worked solutions, harmless look-alikes (ours)",
        under=conditions.SMALL_RECIPE,
    )
    lookalikes: int = knob(
        8,
        "harmless look-alikes of each round beside its helpful prompts, at scale 1 (ours)",
        FROM_0,
        under=conditions.SMALL_RECIPE,
    )
    turned: tuple[float, ...] = knob(
        (0.25, 0.5),
        "share of demonstrations and of the rounds' prompts, refusals and look-alikes alike, that"
        " are asked in the other form, as a question or as a request (ours)",
        under=conditions.SMALL_RECIPE,
    )
    twins: float = knob(
        0.5,
        "share of a round's attacks that have a harmless twin in the same framing (ours)",
        Range(0, 1),
        under=conditions.SMALL_RECIPE,
    )
    held_out: str = knob(
        "fiction,encoded",
        "families of framings that no prompt has, comma-separated (ours)",
        under=conditions.SMALL_RECIPE,
    )
