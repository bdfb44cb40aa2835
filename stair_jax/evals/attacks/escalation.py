"""Escalation: a conversation that leads to a request in fixed steps, the target answering each.

The user turns are `transforms.escalation`'s, in our words, so the protocol is
"escalation-own-words". No attacker writes them and no judge rates: the answer to the last turn goes
to the benchmark that the request is from.
"""

from stair_jax.evals.attacks import transforms
from stair_jax.evals.attacks.target import Final
from stair_jax.evals.attacks.transcript import (
    TARGET,
    Budget,
    BudgetSpent,
    Chat,
    Move,
    Place,
    Recorder,
    Sampling,
    Stream,
    Transcript,
)
from stair_jax.text import Turn

PROTOCOL = "escalation-own-words"
COUNTS = ("no_answer",)


def attack(
    goal: str,
    *,
    target: Chat,
    final: Final,
    seed: int = 0,
    sampling: Sampling = TARGET,
    budget: Budget | None = None,
) -> Transcript:
    """Returns the conversation about one request; its last move is the answer that counts.

    The target sees its own earlier responses whole, reasoning included.

    Args:
      goal: the request, as in its data set.
      target: is attacked.
      final: takes the final answer out of a target's response.
      seed: of all draws.
      sampling: how the target's responses are drawn.
      budget: none where it is None. Where it ends the conversation, the last turn has no move.

    Raises:
      ValueError: where the target does not give one text for each conversation.
    """
    budget = budget or Budget()
    recorder = Recorder(seed, budget)
    recorder.counts.update(dict.fromkeys(COUNTS, 0))
    turns: list[Turn] = []
    moves: list[Move] = []
    ended = "exhausted"
    try:
        for step, (role, said) in enumerate(transforms.escalation(goal)):
            turns.append((role, said))
            place = Place(0, step)
            response = recorder.ask("target", target, {place: tuple(turns)}, sampling)[place]
            answer = final(response)
            recorder.counts["no_answer"] += not answer
            turns.append(("assistant", response))
            moves.append(
                Move(iteration=step, improvement="", prompt=said, response=response, answer=answer)
            )
    except BudgetSpent:
        turns.pop()  # it was not asked
        ended = "budget"
    return Transcript(
        protocol=PROTOCOL,
        goal=goal,
        target_str="",
        seed=seed,
        settings={"target": _plain(sampling)} | budget.limits(),
        prompts={},
        streams=(Stream(name="escalation", turns=tuple(turns), moves=tuple(moves)),),
        calls=tuple(recorder.calls),
        counts=dict(recorder.counts),
        ended=ended,
    )


def _plain(sampling: Sampling) -> dict[str, float]:
    return {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": sampling.max_tokens,
    }
