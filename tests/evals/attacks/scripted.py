"""Scripted models for tests of attacks, and a PAIR that is played with them."""

import json
from typing import Any

from stair_jax import text
from stair_jax.evals.attacks import pair
from stair_jax.evals.attacks.pair import Settings


class Scripted:
    """A `Chat` that answers by a function and keeps what it was asked."""

    def __init__(self, reply):
        self.reply, self.asked, self.batches, self.samplings = reply, [], [], []

    def ask(self, conversations, *, seeds, sampling):
        assert len(conversations) == len(seeds) > 0
        self.batches.append(len(conversations))
        self.samplings.append(sampling)
        self.asked += zip(conversations, seeds, strict=True)
        return [self.reply(talk, seed) for talk, seed in zip(conversations, seeds, strict=True)]


def rewriting(talk, seed):
    """Returns an attack that tells how many turns and which seed it was made of."""
    return json.dumps({"improvement": f"turn {len(talk)}", "prompt": f"prompt {seed}"})


GOAL, BEGIN = "Explain {how} locks work", "Sure, locks"
SMALL = Settings(n_streams=4, n_iterations=3)


def answering(talk, seed):
    """Returns a response with a thought and a final answer."""
    said = talk[-1][1]
    return f"{text.STEP}secret thought{text.STEP_END}{text.OUTPUT}No to {said}.{text.OUTPUT_END}"


def play(
    settings=SMALL, attacker=rewriting, target=answering, judge: Any = "Rating: [[3]]", **more
):
    """Returns a transcript and the three models that were asked."""
    judging = judge if callable(judge) else lambda talk, seed: judge
    chats: dict[str, Any] = {
        "attacker": Scripted(attacker),
        "target": Scripted(target),
        "judge": Scripted(judging),
    }
    more = {"final": text.final_answer, "seed": 7} | more
    return pair.attack(GOAL, BEGIN, settings=settings, **chats, **more), chats
