"""Trees of uneven sizes, grown by a script."""

import pytest

from tests.support.scripted import RandomScript, ScriptedEngine, run, search_config


class Uneven(RandomScript):
    """Scores whose sums depend on the order of adding, in the last bit."""

    def judge(self, prompt, response):
        verdict = super().judge(prompt, response)
        return verdict and (verdict[0] * 0.7071, verdict[1] * self._unit("uneven", response))


# names few enough for duplicates, steps that lack an end, verdicts that are missing
SCRIPT = Uneven("driver", names=5, ends=0.25, missing=0.1, uncut=0.8)
CONFIG = search_config(ties="random")


class Watched(ScriptedEngine):
    """Remembers all requests, and step by step what was under way and how many trees were open."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.questions, self.requests, self.under_way, self.trees_open = [], [], [], []

    def root(self, ids):
        prefix = super().root(ids)
        self.questions.append(prefix.prompt)
        return prefix

    def submit(self, request):
        self.requests.append(request)
        super().submit(request)

    def step(self):
        self.under_way.append([request.id for _, request in self._waiting.values()])
        # Every tree that grows holds its root.
        self.trees_open.append(sum(prefix.trajectory == () for prefix in self.held))
        super().step()

    @property
    def overlapped(self):
        """Whether children of a tree were evaluated beside the steps of their siblings."""
        return any(
            {"step", "rollout"} <= {id.kind for id in ids if id.prompt_id == prompt}
            for ids in self.under_way
            for prompt in {id.prompt_id for id in ids}
        )


@pytest.fixture(scope="module")
def forest():
    return run(SCRIPT, CONFIG, kind=Watched)
