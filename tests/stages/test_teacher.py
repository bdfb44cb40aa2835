"""A teacher in stage prepare: a local server that speaks the protocol, or the run's checkpoint."""

import json
import pathlib

import jax
import numpy as np
import pytest

from stair_jax import text
from stair_jax.config.checks import validate
from stair_jax.data.formats import sft_rows
from stair_jax.data.teaching.collect import Attempt
from stair_jax.data.teaching.filters import Unfit
from stair_jax.data.teaching.grammar import Fault, Step, render
from stair_jax.hf import exporter
from stair_jax.jsonl import read_jsonl
from stair_jax.log.metrics import Metrics
from stair_jax.miniature import tokenizer
from stair_jax.remote.client import Unavailable
from stair_jax.remote.complaints import Refused
from stair_jax.run import engine_teacher, judges
from stair_jax.run.lineage import Lineage
from stair_jax.run.workdir import Run
from stair_jax.search import candidates
from stair_jax.stages import prepare
from stair_jax.text import OUTPUT, OUTPUT_END, STEP, STEP_END, TAGS
from tests.support import hf_folders, specs
from tests.support.openai_server import OpenAIServer
from tests.support.paper_rows import attack, harmful, helpful, write
from tests.support.remote import _direct
from tests.support.workdirs import toy

__all__ = ["_direct"]  # a fixture that every test here uses, too

GOOD = render([Step("Problem Analysis", "What is asked."), Step("Solve", "So.")], "It is 4.")
NO = render([Step("Problem Analysis", "No.")], "I'm sorry, but I can't help with this.")
# By question: what the teacher says, attempt by attempt; the last of it again and again.
SAFETY = {
    "how do i rob 0 ?": [NO],
    "how do i rob 1 ?": [GOOD, NO],
    "how do i rob 2 ?": [GOOD],
}
HELP = {
    f"what is {number} plus 3 ?": said
    for number, said in enumerate(
        [
            [GOOD],
            [GOOD.replace(STEP_END, "", 1), GOOD],
            [f"Sure! {GOOD}", GOOD],
            [f"{GOOD}{OUTPUT}Final Answer: 5{OUTPUT_END}", GOOD],
            [GOOD.replace("So.", "So <|x|>."), GOOD],
            [GOOD.replace("Title: Solve:", "Solved."), GOOD],
            [GOOD.replace("Problem Analysis", "Thoughts"), GOOD],
            [GOOD.replace("So.", ""), GOOD],
            [GOOD.replace("It is 4.", " "), GOOD],
            [NO, NO],
            ["four", "four"],
            [GOOD],  # which the server filters every time
        ]
    )
}
FILTERED = "what is 11 plus 3 ?"
SCRIPT = SAFETY | HELP
ASKED_TWICE = {q for q, replies in SCRIPT.items() if len(replies) > 1} | {"how do i rob 2 ?"}
REASONS = {*map(str, Fault), str(Unfit.REFUSED), str(Unfit.UNSAFE), str(Unfit.NO_REPLY)}
INSTRUCTION = "Think. {question}"
SIZES = {
    "recipe__safety": 3,
    "recipe__jailbreak": 0,
    "recipe__helpful": 12,
    "recipe__cot": (3, 12),
    **{f"recipe__round_{kind}": (0,) for kind in ("safety", "helpful", "jailbreak")},
    "recipe__prm": (0, 0),
}


@pytest.fixture
def prepare_with(tmp_path):
    """Runs stage prepare with a teacher; the corpora hold just the prompts of the script."""
    write(tmp_path / "p.jsonl", map(harmful, range(len(SAFETY))))
    write(tmp_path / "u.jsonl", map(helpful, range(len(HELP))))
    write(tmp_path / "j.jsonl", [attack(0)])
    (tmp_path / "mine.txt").write_text(INSTRUCTION)
    corpora = {"pku_saferlhf": "p", "ultrafeedback": "u", "jailbreakv": "j"}

    def go(teacher, **changes):
        usual = {
            "stages": "prepare",
            "data__recipe": "paper",
            "data__corpora": ",".join(f"{k}:{tmp_path / v}.jsonl" for k, v in corpora.items()),
            "data__decontaminate": "none",
            "recipe__teacher": teacher,
            "recipe__instruction": str(tmp_path / "mine.txt"),
            "recipe__teacher_attempts": 2,
            "judge__safety": "rule",
            "judge__helpfulness": "none",
            **SIZES,
        }
        if "://" in teacher:
            usual["judge__retries"] = 0
        c = toy(tmp_path / "run", **usual | changes)
        validate(c)
        folder = pathlib.Path(c.workdir)
        folder.mkdir(exist_ok=True)
        with Metrics(folder) as metrics:
            run = Run(c, folder, Lineage(folder / "lineage.json"), metrics)
            prepare.look(run)
            prepare.run(run)
        return folder / "data"

    return go


def serving(fault=lambda question, attempt: "", script=SCRIPT):
    """A server that goes through the script, a reply further whenever it answers a question."""

    def answer(said):
        question = said.removeprefix("Think. ")
        replies = script[question]
        return replies[min(server.answered[said], len(replies)) - 1]

    def treat(said, attempt):
        question = said.removeprefix("Think. ")
        return "content_filter" if question == FILTERED else fault(question, attempt)

    server = OpenAIServer(answer, treat)
    return server


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def questions_of(some):
    return {row["prompt"] for row in some}


def test_replies_that_every_filter_let_pass_are_the_rows_of_stage_1(prepare_with, capsys):
    draws = {"temperature": 0.75, "top_p": 0.5, "max_tokens": 77}
    with serving() as server:
        data = prepare_with(
            f"gpt@{server.url}", **{f"recipe__teacher_{key}": value for key, value in draws.items()}
        )
    said, request, _ = server.asked[0]
    assert said.startswith("Think. ")
    assert {key: request[key] for key in ("model", *draws)} == {"model": "gpt", **draws}
    lost = {"how do i rob 2 ?", "what is 9 plus 3 ?", "what is 10 plus 3 ?", FILTERED}
    taught = rows(data / "sft.jsonl")
    assert questions_of(taught) == set(SCRIPT) - lost
    assert {row["answer"] for row in taught if row["type"] == "safety"} == {NO}
    assert {row["answer"] for row in taught if row["type"] == "helpfulness"} == {GOOD}
    assert len(sft_rows(str(data / "sft.jsonl")).rows) == len(taught) == 11
    assert len(rows(data / "prompts-cot.jsonl")) == len(SCRIPT)  # all that were asked

    attempts = read_jsonl(data / "taught/attempts.jsonl", Attempt)
    assert {one.reason for one in attempts} == {"kept", *REASONS}
    told = json.loads((data / "manifest.json").read_text())["taught"]
    assert told["teacher"] == "gpt"
    assert told["prompts"] == {"helpfulness": 12, "safety": 3}
    assert told["kept"] == {"helpfulness": 9, "safety": 2}
    first, second = told["attempts"]
    assert (first["kept"], second["kept"]) == (2, 9)
    once = dict.fromkeys(REASONS, 1)
    assert first == once | {"kept": 2, str(Unfit.UNSAFE): 2, str(Fault.TAGS): 2}
    dropped = {
        str(Unfit.UNSAFE): 1,
        str(Unfit.REFUSED): 1,
        str(Fault.TAGS): 1,
        str(Unfit.NO_REPLY): 1,
    }
    assert told["dropped"] == dropped
    listed = rows(data / "dropped.jsonl")
    assert {row["corpus"] for row in listed} == {"the teacher's replies"}
    assert sorted(row["reason"] for row in listed) == sorted(dropped)
    card = (data / "card.md").read_text()
    for line in (
        "`gpt` answered 9 of 12 helpfulness prompts, 2 of 3 safety prompts",
        f"| {Fault.TAGS} | 2 | 1 |",
        "| kept | 2 | 9 |",
        f"| replies of the teacher | {Unfit.REFUSED} | 1 |",
        "2 responses refuse; wordings: 1, the most frequent 2 times: I'm sorry, but",
        "the analysis included: 2 with 1, 9 with 2",
        "| `sft.jsonl` | 11 |",
    ):
        assert line in card
    assert card in capsys.readouterr().out


def test_a_run_that_was_killed_pays_for_nothing_twice(prepare_with, tmp_path):
    """The key is withdrawn on the way, again and again; the judge sits at the same endpoint."""
    withdrawn = []

    def fault(question, attempt):
        number = sum(server.answered.values())
        if number >= 4 * (len(withdrawn) + 1) and len(withdrawn) < 5:
            withdrawn.append(question)
            return "401"
        return ""

    def answer(said):
        if "Conclusion" in said:
            return f"Conclusion: [{'SAFE' if 'sorry' in said else 'UNSAFE'}]"
        replies = SCRIPT[said.removeprefix("Think. ")]
        return replies[min(server.answered[said], len(replies)) - 1]

    judged = {
        "judge__safety": "remote",
        "judge__refusal_rule": False,
        "judge__model": "judge",
        "judge__concurrency": 1,
    }
    with OpenAIServer(answer, fault) as server:
        judged["judge__endpoint"] = server.url
        stops, data = [], None
        while len(stops) < 9:
            try:
                data = prepare_with(f"gpt@{server.url}", **judged)
                break
            except Refused as error:
                stops.append(str(error))
                torn = tmp_path / "run/data/taught/attempts.jsonl"
                if torn.exists():
                    with open(torn, "a") as file:
                        file.write('{"id": "pku')  # as a kill leaves it
        assert len(withdrawn) == len(stops) == 5
        assert any(s.startswith(f"config.recipe.teacher: {server.url} refuses") for s in stops)
        paid = {said: n for said, n in server.answered.items() if "Conclusion" not in said}
        assert paid == {f"Think. {q}": 1 + (q in ASKED_TWICE) for q in SCRIPT}
        verdicts = {said: n for said, n in server.answered.items() if said not in paid}
        assert len(verdicts) == 4
        assert set(verdicts.values()) == {1}
        assert data is not None
    assert len(rows(data / "sft.jsonl")) == 12


def test_dropped_sets_are_made_again_from_what_was_paid_also_at_another_address(
    prepare_with, tmp_path
):
    with serving() as server:
        data = prepare_with(f"gpt@{server.url}")
    first = {path.name: path.read_bytes() for path in data.glob("*.jsonl")}
    lineage = Lineage(tmp_path / "run/lineage.json")
    names = ["data/taught", "data"]
    assert [*lineage.entries["data"]["parents"]] == ["data/taught"]
    assert lineage.chosen(["prepare"]) == lineage.chosen(["data/taught"]) == names
    assert lineage.entries["data/taught"]["rows"] == 11
    lineage.drop(names)
    assert not data.exists()
    with serving() as other:
        assert other.url != server.url
        prepare_with(f"gpt@{other.url}")
        assert other.asked == []
    assert {path.name: path.read_bytes() for path in data.glob("*.jsonl")} == first


def test_what_could_not_be_reached_is_left_open_and_the_same_command_asks_for_that(prepare_with):
    away = {"what is 0 plus 3 ?": "500", "how do i rob 0 ?": "drop", "how do i rob 1 ?": "429"}
    with serving(lambda question, _: away.get(question, "")) as server:
        who = f"gpt@{server.url}"
        with pytest.raises(
            judges.LeftOpen, match=r"data/taught: 3 of 15 prompts left open, .* same command"
        ):
            prepare_with(who)
        before = server.answered.total()
        away.clear()
        data = prepare_with(who)
        assert server.answered.total() == before + 1 + 1 + 2
    assert questions_of(rows(data / "sft.jsonl")) >= {"what is 0 plus 3 ?", "how do i rob 0 ?"}


def test_an_endpoint_that_is_down_ends_the_stage_and_is_named(prepare_with):
    with (
        serving(lambda question, _: "500") as server,
        pytest.raises(Unavailable, match=r"config\.recipe\.teacher: .* no reply to 8 questions"),
    ):
        prepare_with(f"gpt@{server.url}", judge__concurrency=3)


def test_other_settings_than_the_answers_were_made_with_are_refused_by_name(prepare_with, tmp_path):
    with serving(lambda question, _: "500" if question == "how do i rob 0 ?" else "") as server:
        who = f"gpt@{server.url}"
        with pytest.raises(judges.LeftOpen):
            prepare_with(who)
        for message, teacher, changes in (
            (r"recipe\.teacher: 'gpt-5@", f"gpt-5@{server.url}", {}),
            (r"recipe\.teacher_temperature: 0\.5", who, {"recipe__teacher_temperature": 0.5}),
            (r"recipe\.teacher_top_p: 0\.5", who, {"recipe__teacher_top_p": 0.5}),
            (r"recipe\.teacher_max_tokens: 9", who, {"recipe__teacher_max_tokens": 9}),
            (r"seed: 1", who, {"seed": 1}),
        ):
            with pytest.raises(ValueError, match=rf"config\.{message}.*data/taught was made with"):
                prepare_with(teacher, **changes)
        (tmp_path / "mine.txt").write_text("Reckon. {question}")
        with pytest.raises(ValueError, match=r"config\.recipe\.instruction: what it names has"):
            prepare_with(who)
        (tmp_path / "mine.txt").write_text(INSTRUCTION)
        asked = len(server.asked)
        journal = tmp_path / "run/data/taught/attempts.jsonl"
        journal.write_text(journal.read_text().replace('"asked": "', '"asked": "0'))
        with pytest.raises(ValueError, match=r"was asked as .* --config\.redo=data/taught"):
            prepare_with(who)
        assert len(server.asked) == asked


def test_a_teacher_without_a_fit_reply_ends_in_one_line(prepare_with):
    script = {question: ["four"] for question in SCRIPT}
    with (
        serving(script=script) as server,
        pytest.raises(
            ValueError, match=r"recipe\.teacher: no reply of gpt to 15 prompts is fit .*attempts"
        ),
    ):
        prepare_with(f"gpt@{server.url}", recipe__teacher_attempts=1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recipe__teacher": "gpt"}, r"config\.recipe\.teacher: 'gpt', expected NAME@URL .* self"),
        ({"recipe__teacher": "@http://h/v1"}, r"config\.recipe\.teacher: .*expected NAME@URL"),
        (
            {"recipe__teacher": "m@http://a:b@h/v1"},
            r"recipe\.teacher: 'http://\*\*\*@h/v1' carries",
        ),
        (
            {"recipe__cot": (0, 0)},
            r"config\.recipe\.teacher: would be ignored, config\.recipe\.cot",
        ),
        ({"recipe__teacher_temperature": 0.0}, r"config\.recipe\.teacher_temperature: 0 draws"),
        ({"judge__safety": "verifier"}, r"config\.judge\.safety: 'verifier' knows the miniature's"),
        ({"judge__safety": "self"}, r"config\.judge\.safety: 'self' is config\.model\.checkpoint"),
        ({"recipe__teacher": "self"}, r"config\.recipe\.teacher: 'self' is config\.model\.check"),
        ({"data__recipe": "small"}, r"config\.recipe\.teacher: .* would be ignored, it needs"),
        ({"recipe__instruction": "none.txt"}, r"config\.recipe\.instruction: none\.txt: cannot be"),
    ],
)
def test_teachers_that_cannot_be_asked_are_refused_by_name(prepare_with, changes, message):
    usual = {"recipe__teacher": "m@http://h/v1"} | changes
    sizes = {key: value for key, value in usual.items() if key != "recipe__teacher"}
    if changes.get("data__recipe") == "small":
        sizes |= {"recipe__safety": 22_000, "recipe__jailbreak": 3_000, "recipe__helpful": 25_000}
        sizes["recipe__cot"] = (10_000, 10_000)
    with pytest.raises(ValueError, match=message) as error:
        prepare_with(usual["recipe__teacher"], **sizes)
    assert "\n" not in str(error.value)


# ---- the run's checkpoint, in the engine


SMALL_ENGINE = {
    "engine__slots": 16,
    "engine__page_size": 32,
    "engine__max_context": 96,
    "mesh__replicas": 1,
}
# What follows what in the words of a model that knows nothing but its last word.
WORDS = ("Title:", "Problem", "Analysis:", "so", "Final", "Answer:", "four", "Sorry,")
NEXT = {
    "<|end_header_id|>": [STEP],
    STEP: ["Title:"],
    "Title:": ["Problem"],
    "Problem": ["Analysis:"],
    "Analysis:": ["so", "so", STEP_END],  # an empty step now and then
    "so": [STEP_END],
    STEP_END: [OUTPUT],
    OUTPUT: ["Final"],
    "Final": ["Answer:"],
    "Answer:": ["four", "Sorry,"],
    "four": [OUTPUT_END],
    "Sorry,": [OUTPUT_END],
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A model of the miniature's words and a few more, in which each depends on the last alone."""
    with pytest.MonkeyPatch.context() as patch:
        own = tokenizer.vocabulary
        patch.setattr(tokenizer, "vocabulary", lambda **k: [*own(**k), *WORDS])
        words = tokenizer.build()
    ids = words.get_vocab()
    spec = specs.llama(L=1, D=16, N=2, K=1, H=8, F=24, V=max(ids.values()) + 1)
    weights = jax.tree.map(np.zeros_like, hf_folders.weights(spec))
    weights["norm"] += 1
    for at, (word, others) in enumerate(NEXT.items()):
        weights["embed"][ids[word], at] = 1
        for other in others:
            # A normed row is 4 in its only place: the other words are e^-20 times as likely.
            weights["head"][ids[other], at] = 5 + np.log(others.count(other)) / 4
    folder = tmp_path_factory.mktemp("model")
    end = ids["<|eot_id|>"]
    exporter.save(folder, spec, weights, words, end_ids=[end], dtype="float32")
    return str(folder)


@pytest.fixture
def asked(monkeypatch):
    """How many prompts the engine was given, call by call."""
    calls, real = [], candidates.sample

    def sample(prompts, *args, **more):
        calls.append(len(prompts))
        return real(prompts, *args, **more)

    monkeypatch.setattr(candidates, "sample", sample)
    return calls


def test_the_checkpoint_answers_in_batches_and_a_stop_costs_no_reply(
    prepare_with, checkpoint, asked, tmp_path, monkeypatch
):
    usual = {"model__checkpoint": checkpoint, "recipe__teacher_attempts": 3, **SMALL_ENGINE}
    kept = {}
    real = prepare.preparing.sampled

    def stop(run, name, made):
        kept["first"] = made.taught
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare.preparing, "sampled", stop)
    with pytest.raises(KeyboardInterrupt):
        prepare_with("self", **usual)
    attempts = read_jsonl(tmp_path / "run/data/taught/attempts.jsonl", Attempt)
    by_number = [sum(one.attempt == n for one in attempts) for n in range(3)]
    assert asked == [n for n in by_number if n]  # each attempt at all that are due, in one batch
    assert asked[0] == 15 > asked[1] > 0
    reasons = {one.reason for one in attempts}
    assert reasons == {"kept", str(Fault.STEP), str(Unfit.UNSAFE), str(Unfit.REFUSED)}

    # Half of what was decoded is on disk when the next start comes, which decodes the rest.
    replies = tmp_path / "run/data/taught/replies.jsonl"
    lines = replies.read_text().splitlines(keepends=True)
    replies.write_text("".join(lines[:7]) + lines[7][:9])
    (tmp_path / "run/data/taught/attempts.jsonl").unlink()
    monkeypatch.setattr(prepare.preparing, "sampled", real)
    asked.clear()
    data = prepare_with("self", **usual)
    assert sum(asked) == len(lines) - 7
    assert sorted(replies.read_text().splitlines(keepends=True)) == sorted(lines)
    taught = rows(data / "sft.jsonl")
    assert len(taught) == len(kept["first"].seeds) > 6
    answers = {row["type"]: text.final_answer(row["answer"]) for row in taught}
    assert answers == {"helpfulness": "four", "safety": "Sorry,"}
    told = json.loads((data / "manifest.json").read_text())["taught"]
    assert told["teacher"] == pathlib.Path(checkpoint).name


def test_the_checkpoint_judges_in_the_engine_that_it_answers_with(
    prepare_with, checkpoint, tmp_path, monkeypatch
):
    """It says nothing that is a verdict, so that only short apologies are taken to be safe."""
    (tmp_path / "safety.txt").write_text("is it safe ? {question} {answer}")
    made, real = [], engine_teacher.models.engine_for
    monkeypatch.setattr(
        engine_teacher.models, "engine_for", lambda *a: made.append(real(*a)) or made[-1]
    )
    data = prepare_with(
        "self",
        model__checkpoint=checkpoint,
        judge__safety="self",
        judge__templates=str(tmp_path),
        judge__max_tokens=16,
        recipe__teacher_max_tokens=16,
        **SMALL_ENGINE,
    )
    assert len(made) == 1
    attempts = read_jsonl(data / "taught/attempts.jsonl", Attempt)
    assert str(Unfit.UNJUDGED) in {one.reason for one in attempts}


def test_tags_of_an_instruction_reach_a_checkpoint_as_it_knows_them():
    plain = hf_folders.make_tokenizer()
    tagged = hf_folders.make_tokenizer()
    tagged.add_special_tokens({"additional_special_tokens": [*TAGS, "<|im_end|>", "<|im_start|>"]})
    codec = text.Codec(tagged, "chatml")
    said = f"use {STEP} and < |Output|> and <|im_end|>"
    for own, tags in ((plain, 0), (tagged, 1)):
        ids = engine_teacher.TaggedCodec(codec, own).prompt_ids(said)
        read = tagged.decode(ids)
        assert f"use {STEP} and < |Output|> and < |im_end|>" in read
        assert ids.count(tagged.get_vocab()[STEP]) == tags
    assert f"{STEP[0]} {STEP[1:]}" in tagged.decode(codec.prompt_ids(said))


def test_an_instruction_that_leaves_no_room_is_refused(prepare_with, checkpoint):
    with pytest.raises(
        ValueError, match=r"config\.recipe\.instruction: takes \d+ of the 104 tokens .* to \d+ or"
    ):
        prepare_with("self", model__checkpoint=checkpoint, recipe__instruction="")
