"""Rejected responses that the model to be trained gives itself, as the paper's D has on attacks."""

import logging
from collections.abc import Hashable, Sequence

from stair_jax import jsonl, text
from stair_jax.config.schema import RewardConfig
from stair_jax.data.seeds import Seed
from stair_jax.engine.request import Sampling
from stair_jax.engine.shared_engine import SharedEngine
from stair_jax.judges.base import Score
from stair_jax.log import progress
from stair_jax.records import Candidate, Prompt
from stair_jax.remote.open import Open
from stair_jax.run import known_models, models
from stair_jax.run.workdir import Run
from stair_jax.search import candidates
from stair_jax.search.reward import Reward

log = logging.getLogger(__name__)

FILE = "rejected.jsonl"
CUT, BLANK = "the model's response did not end", "the model's response has no answer"
PASSED = "the prompt does not fit the engine"


class NoJudge:
    """Has no score for anything, at once: responses are wanted as they are."""

    def __init__(self):
        self._asked: list[Hashable] = []

    def submit(self, id: Hashable, prompt: Prompt, response: str) -> None:
        """Takes a response."""
        self._asked.append(id)

    def collect(self) -> list[tuple[Hashable, Score | Open | None]]:
        """Returns each that was taken since the last call, without a score."""
        found, self._asked = self._asked, []
        return [(id, None) for id in found]


def sample(run: Run, artefact: str, seeds: Sequence[Seed]) -> tuple[dict[str, str], dict[str, str]]:
    """Samples one response of the run's base to each seed; what is in the file is not asked again.

    Args:
      run: the caller has begun the artefact, in whose folder the file lies.
      artefact: of which the responses are a part.
      seeds: that are answered.

    Returns:
      Responses by the seed's id, and the reasons why others have none.

    Raises:
      ValueError: where there is no checkpoint that could answer.
    """
    if not run.config.model.checkpoint:
        raise ValueError(
            f"config.data.recipe: {run.config.data.recipe!r} has {len(seeds)} rejected responses"
            " sampled from the model; set config.model.checkpoint, or config.recipe.jailbreak=0"
        )
    path = run.workdir / artefact / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    jsonl.mend_jsonl(path)
    model = known_models.base(run)
    have = {row.id for row in jsonl.read_jsonl(path, Candidate)}
    prompts = [prompt_of(seed) for seed in seeds]
    left = [prompt for prompt in prompts if candidates.id_of(prompt, 0) not in have]
    passed_over = _ask(run, artefact, model, left, have) if left else {}
    rows = {row.prompt: row for row in jsonl.read_jsonl(path, Candidate)}
    found: dict[str, str] = {}
    missing = {id: f"{PASSED}: {reason}" for id, reason in passed_over.items()}
    for prompt in prompts:
        if prompt.id in missing:
            continue
        row = rows[prompt.id]
        if answer := text.final_answer(row.text, model.direct) if row.ended else None:
            found[prompt.id] = answer
        else:
            missing[prompt.id] = BLANK if row.ended else CUT
    return found, missing


def _ask(
    run: Run, artefact: str, model: known_models.Model, left: list[Prompt], have: set[str]
) -> dict[str, str]:
    """Appends a row for each prompt as it comes; returns why prompts were passed over."""
    c, path, done = run.config, run.workdir / artefact / FILE, len(have)
    draw = candidates.Draw(
        count=1,
        sampling=Sampling(temperature=c.recipe.temperature),
        max_tokens=c.recipe.max_tokens,
        key=(c.seed, artefact),
        direct=model.direct,
    )
    policy = models.load(run, model, for_engine=True)
    engine = models.engine_for(run, policy)
    engine.compile([draw.sampling])
    board = SharedEngine(engine)
    with (
        progress.line(artefact, done + len(left), "rejected responses", done=done) as show,
        jsonl.Journal() as journal,
    ):

        def keep(row: Candidate) -> None:
            journal.add(path, row)
            have.add(row.id)
            show(len(have), f"{engine.counters['delivered']:,} tokens")

        return candidates.sample(
            left,
            draw,
            engine=board.client(),
            codec=policy.codec,
            judge=NoJudge(),
            reward=Reward(c.search.reward, RewardConfig.of(c.reward)),
            have=(),
            on_candidate=keep,
        ).passed_over


def prompt_of(seed: Seed) -> Prompt:
    """Returns what is asked of a seed."""
    return Prompt(id=seed.id, question=seed.question, type=seed.type, before=seed.before)
