"""Whole responses of a model of the run, sampled and judged; a restart goes on where it stopped."""

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence

from stair_jax import jsonl
from stair_jax.config.schema import RewardConfig
from stair_jax.engine.shared_engine import SharedEngine
from stair_jax.log import progress
from stair_jax.records import Candidate, Prompt
from stair_jax.run import judges, models
from stair_jax.run.known_models import Model
from stair_jax.run.workdir import Run
from stair_jax.search import candidates
from stair_jax.search.candidates import Draw
from stair_jax.search.reward import Reward


@dataclasses.dataclass(frozen=True)
class Sampled:
    """What came of it."""

    rows: list[Candidate]  # by id
    passed_over: dict[str, str]  # reasons, by prompt
    rubrics: dict[str, str]  # hashes of what the judges were asked with


def sample(
    run: Run,
    artefact: str,
    model: Model,
    prompts: Sequence[Prompt],
    draw: Draw,
    given: Mapping[str, str] = {},
) -> Sampled:
    """Samples and judges what is missing of `<artefact>/candidates.jsonl`; appends row by row.

    Args:
      run: the caller has begun the artefact.
      artefact: the folder in the workdir.
      model: whose responses.
      prompts: with ids of their own.
      draw: how many a prompt, and how.
      given: a response that is there already, by prompt id, judged beside the samples.

    Raises:
      ValueError: where responses are left open, because nobody judged them.
    """
    c, path = run.config, run.workdir / artefact / "candidates.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    rubrics = judges.hold_to(c, path.parent)
    path.touch()
    jsonl.mend_jsonl(path)
    have = {row.id for row in jsonl.read_jsonl(path, Candidate)}
    passed_over: dict[str, str] = {}
    wanted = len(prompts) * draw.count + len(given)
    if len(have) < wanted:
        policy = models.load(run, model, for_engine=True)
        engine = models.engine_for(run, policy)
        also = judges.samplings(c)
        engine.compile([draw.sampling, *also], extends=bool(also))
        board = SharedEngine(engine)
        with (
            contextlib.closing(
                judges.judge_of(run, board, policy.codec, direct=draw.direct)
            ) as judge,
            progress.line(artefact, wanted, "responses", done=len(have)) as show,
            jsonl.Journal() as journal,
        ):

            def keep(row: Candidate) -> None:
                journal.add(path, row)
                have.add(row.id)
                show(len(have), f"{engine.counters['delivered']:,} tokens")

            leftovers = candidates.sample(
                prompts,
                draw,
                engine=board.client(),
                codec=policy.codec,
                judge=judge,
                reward=Reward(c.search.reward, RewardConfig.of(c.reward)),
                have=frozenset(have),
                on_candidate=keep,
                given={name: policy.codec.response_ids(text) for name, text in given.items()},
            )
        passed_over = leftovers.passed_over
        judges.check_open(artefact, leftovers.left_open)
    rows = sorted(jsonl.read_jsonl(path, Candidate), key=lambda row: row.id)
    return Sampled(rows, passed_over, rubrics)
