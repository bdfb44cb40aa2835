"""An engine that says what it is told, for whole responses."""

from stair_jax.records import Prompt

EOS = "<|eot_id|>"


class Talker:
    """A script whose responses are numbered, and judged by the number; some do not end."""

    def rollout(self, prompt, trajectory, visit):
        del prompt, trajectory
        return f"answer {visit}" + ("" if visit == 3 else EOS)

    def judge(self, prompt, response):
        number = int(response.removesuffix(EOS).split()[-1])
        if prompt.endswith("tie") or number == 3:
            return 1.0, 1.0
        return (1.0, [0.5, -1.0, 0.0][number]) if number < 3 else None


ASKED = [
    Prompt(id="p0", question="question 0", type="helpfulness"),
    Prompt(id="p1", question="they all tie", type="helpfulness"),
    Prompt(id="p2", question="q" * 60, type="safety"),
]
