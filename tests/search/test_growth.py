import dataclasses

import pytest

from stair_jax import text
from stair_jax.engine.request import Result, Sampling
from stair_jax.search import growth
from stair_jax.search.driver import grow
from tests.support import scripted
from tests.support.hf_folders import make_tokenizer
from tests.support.scripted import RandomScript, ScriptedEngine, search_config

SETTINGS = {"temperature": 0.7, "top_k": 9, "top_p": 0.6, "min_p": 0.05}


@pytest.mark.parametrize("name", SETTINGS)
def test_every_sampling_setting_reaches_every_request(name, monkeypatch):
    asked, submit = [], ScriptedEngine.submit

    def listening(engine, request):
        asked.append(request)
        submit(engine, request)

    monkeypatch.setattr(ScriptedEngine, "submit", listening)
    usual = search_config(iterations=3)
    changed = dataclasses.replace(usual, **{name: SETTINGS[name]})
    assert growth.sampling_of(usual) != growth.sampling_of(changed)
    scripted.run(RandomScript("sampling"), changed)
    names = "temperature", "top_k", "top_p", "min_p"
    want = Sampling(**{n: getattr(changed, n) for n in names})
    assert getattr(want, name) == SETTINGS[name]
    assert asked
    assert all(request.sampling == want for request in asked)


def test_log_probs_are_asked_for_where_the_prior_needs_them():
    ucb = search_config()
    pucb = dataclasses.replace(ucb, score="pucb")
    uniform = dataclasses.replace(pucb, prior="uniform")
    assert [growth.wants_logps(c) for c in (ucb, pucb, uniform)] == [False, True, False]


def test_a_forest_without_room_for_a_tree_is_refused():
    with pytest.raises(ValueError, match="trees_in_flight: 0 found"):
        scripted.run(RandomScript("none"), search_config(trees_in_flight=0))


class ByteCodec(text.Codec):
    """A codec of single bytes; a prompt is its question."""

    def __init__(self):
        tokenizer = make_tokenizer()
        named = [*text.TAGS, text.TURN_ENDS["chatml"]]
        tokenizer.add_special_tokens({"additional_special_tokens": named})
        super().__init__(tokenizer, "chatml")

    def prompt_ids(self, question, before=()):
        return self.encode(f"prompt: {question}")


MIXED = "é€😀\u200d" * 9  # of two, three, four and three bytes
STORIES = [f"{name}{MIXED}{text.OUTPUT}{name}ß{text.OUTPUT_END}" for name in "abc"]


class StoryTeller(ScriptedEngine):
    """Goes on with one of the stories, wherever the limit of a step has cut it."""

    def _answer(self, request):
        start = request.prefix
        said = start.ids[len(self.codec.prompt_ids(start.prompt)) :]
        story = self.codec.encode(STORIES[request.key[-1] % 3])
        if said:
            (story,) = (x for x in map(self.codec.encode, STORIES) if x[0] == said[0])
        ids = tuple(story[len(said) : len(said) + request.max_tokens])
        finish = "stop" if ids[-1] in self.codec.end_stop else "length"
        prefix = self._hold(scripted.ScriptedPrefix(start.ids + ids, start.prompt, ()))
        return Result(id=request.id, ids=ids, logps=(), prefix=prefix, finish=finish)


@pytest.mark.parametrize("limit", [1, 5, 7])
def test_a_character_that_a_limit_cuts_is_in_the_text_of_the_step_that_ends_it(limit):
    codec, trees, script = ByteCodec(), [], RandomScript("bytes")
    judge = scripted.ScriptedJudge(script)
    config = search_config(
        iterations=12, max_depth=30, max_step_tokens=limit, max_rollout_tokens=3 * limit
    )
    grow(
        scripted.prompts(1),
        engine=StoryTeller(script, codec),
        judge=judge,
        codec=codec,
        config=config,
        reward=scripted.PAPER,
        seed=0,
        on_tree=trees.append,
    )
    paths = [tree.path(i) for tree in trees for i in range(len(tree.nodes))]
    assert any("\ufffd" in codec.tokenizer.decode(step.ids) for path in paths for step in path)
    assert max(map(len, paths)) > 4
    for path in paths:
        said = "".join(step.text for step in path)
        assert said == codec.decode(i for step in path for i in step.ids)
        assert "\ufffd" not in said
        assert any(story.startswith(said) for story in STORIES)
    answers = [response for _, _, response in judge.asked]
    assert any(len(answer) > 1 for answer in answers)
    assert all(any(story.startswith(x) for story in STORIES) for x in answers)


def test_a_character_that_never_ends_is_left_out_and_a_wrong_one_is_not():
    codec = ByteCodec()
    ids = codec.encode("né")
    assert codec.decode(ids) == "né"
    assert codec.decode(ids[:-1]) == "n"
    assert codec.decode([*ids[:-1], *codec.encode("n")]) == "n\ufffdn"
