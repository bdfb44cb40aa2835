"""Who attacks and who rates: how the settings are read, and what is refused in one line."""

import pytest

from stair_jax.config.checks import validate
from stair_jax.config.stages import EVALUATE
from stair_jax.config.words import ATTACKS, PAP_TECHNIQUES
from stair_jax.evals.attacks import pap
from stair_jax.evals.attacks.transcript import Sampling, digest
from stair_jax.log.metrics import Metrics
from stair_jax.run import attack_models, attacks, benchmarks, known_models, needs
from stair_jax.run.answerer import Answerer, Reply
from stair_jax.run.attack_models import Cast, EngineModel
from stair_jax.run.lineage import Lineage
from stair_jax.run.workdir import Run
from stair_jax.text import OUTPUT, OUTPUT_END
from tests.support.configs import tiny
from tests.support.search_engine import SPEC

HTTP = "http://h:1/v1"
REAL = {
    "evaluate__search": "greedy",
    "evaluate__benchmarks": "harmful,jailbreak",
    "stages": "evaluate",
    "workdir": "w",
}
BOTH = {"evaluate__attacker": f"m@{HTTP}", "evaluate__attack_judge": "dpo-1"}


def check(**changes):
    c = tiny(**(REAL | changes))
    validate(c)
    benchmarks.check(c)
    return c


def run_of(folder, **changes):
    c = check(workdir=str(folder), **changes)
    return Run(c, folder, Lineage(folder / "lineage.json"), Metrics(folder))


def test_the_techniques_of_the_settings_are_those_that_are_defined():
    assert tuple(pap.TECHNIQUES) == PAP_TECHNIQUES


def test_a_model_is_behind_an_address_or_of_the_run():
    c = check(
        evaluate__attacks="pair",
        evaluate__attacker="a@b@https://h/v1",
        evaluate__attack_judge="sft",
    )
    assert attack_models.of(c, "attacker") == ("a@b", "https://h/v1")
    assert attack_models.of(c, "attack_judge") == ("sft", "")


def test_what_attacks_already_is_not_attacked():
    c = check(evaluate__attacks="escalation")
    asked = benchmarks.of(c)
    assert [one.name for one in asked] == ["harmful", "jailbreak"]
    assert [one.name for one in attack_models.attackable(asked)] == ["harmful"]


BAD = [
    (
        {"evaluate__attacks": "pair,pear"},
        r"evaluate\.attacks: \['pear'\] not in \['pair', 'pap', 'e",
    ),
    (
        {"evaluate__attacks": "escalation", "evaluate__benchmarks": "jailbreak,lookalike"},
        r"evaluate\.attacks: \['escalation'\] would have nothing to attack, none of \['jailb",
    ),
    (
        {"evaluate__attacks": "escalation", "evaluate__search": "best_of_2"},
        r"evaluate\.attacks: 'escalation' would be ignored, it needs greedy in",
    ),
    (
        {"evaluate__attacks": "pap"},
        r"evaluate\.attacker: no name, pap needs one; expected NAME@URL",
    ),
    (
        {"evaluate__attacks": "pair", "evaluate__attacker": "sft"},
        r"evaluate\.attack_judge: no name, pair needs one",
    ),
    (
        {"evaluate__attacks": "pap", "evaluate__attacker": f"@{HTTP}"},
        r"evaluate\.attacker: no name",
    ),
    (
        {"evaluate__attacks": "pap", "evaluate__attacker": "m@http://user:secret@h/v1"},
        r"evaluate\.attacker: 'http://\*\*\*@h/v1'",
    ),
    (
        {"evaluate__attacks": "pap", "evaluate__attacker": "ftp://user:secret@h/v1"},
        r"evaluate\.attacker: 'ftp://\*\*\*@h/v1', expected NAME@URL with http",
    ),
    (
        {"evaluate__attacks": "escalation", "evaluate__attacker": "m@http://user:secret@h/v1"},
        r"evaluate\.attacker: 'm@http://\*\*\*@h/v1' would be ignored, it needs pair or pap in",
    ),
    (
        {"evaluate__attacks": "pap", "evaluate__attacker": "sft", "evaluate__attack_judge": "sft"},
        r"evaluate\.attack_judge: 'sft' would be ignored, it needs pair in",
    ),
    (
        {"evaluate__attacks": "pap", "evaluate__attacker": "sft", "evaluate__pair_streams": 30},
        r"evaluate\.pair_streams: 30 would be ignored, it needs pair in",
    ),
    (
        {"evaluate__attacks": "pap", "evaluate__attacker": "sft", "evaluate__pap_techniques": "x"},
        r"evaluate\.pap_techniques: \['x'\] not in \['misrepresentation'",
    ),
    (
        {"evaluate__attacks": "pap", "evaluate__attacker": "sft", "evaluate__pap_techniques": ","},
        r"evaluate\.pap_techniques: empty, pap needs one",
    ),
    (
        BOTH | {"evaluate__attacks": "pair", "evaluate__pair_iterations": 0},
        r"evaluate\.pair_iterations: 0, expected",
    ),
    (
        {"evaluate__attacks": "escalation", "judge__retries": 0},
        r"judge\.retries: 0 would be ignored, it needs .* config\.evaluate\.attacker",
    ),
]


@pytest.mark.parametrize(("changes", "message"), BAD, ids=lambda x: str(x)[:60])
def test_attacks_that_could_not_be_made_are_refused_in_one_line(changes, message):
    with pytest.raises(ValueError, match=message) as error:
        check(**changes)
    assert "\n" not in str(error.value)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("attack", ATTACKS)
def test_each_attack_is_taken_with_what_it_needs(attack):
    needed = {
        role: BOTH[f"evaluate__{role}"] for role, by in attack_models.ROLES.items() if attack in by
    }
    check(evaluate__attacks=attack, **{f"evaluate__{role}": name for role, name in needed.items()})


def test_a_name_that_no_model_can_have_is_refused_before_the_first_stage(tmp_path):
    run = run_of(tmp_path, evaluate__attacks="pap", evaluate__attacker="gpt")
    with pytest.raises(ValueError, match=r"evaluate\.attacker: model 'gpt' .*; one behind an endp"):
        attacks.look(run)


def test_a_model_that_is_not_there_yet_is_refused_when_its_turn_comes(tmp_path):
    run = run_of(tmp_path, evaluate__attacks="pap", evaluate__attacker="dpo-1")
    attacks.look(run)
    with pytest.raises(ValueError, match=r"evaluate\.attacker: model 'dpo-1' is not one of"):
        Cast(run)
    Cast(run_of(tmp_path, evaluate__attacks="escalation"))


def test_a_folder_without_the_authors_prompts_is_refused_before_the_first_stage(tmp_path):
    run = run_of(tmp_path, evaluate__attacks="pair", evaluate__pair_prompts=str(tmp_path), **BOTH)
    with pytest.raises(ValueError, match=r"evaluate\.pair_prompts: .*pair_attacker_roleplay"):
        attacks.look(run)


def said(prompt):
    return f"t {OUTPUT}{prompt.question}{OUTPUT_END}"


class Answers(Answerer):
    """An answerer of fixed replies, by the user turn; it has no room for "long"."""

    def __init__(self, run):
        super().__init__(run, known_models.SFT_MODEL, [])
        self.asked = []

    def converse(self, prompts, sampling, max_tokens):
        self.asked += [(one.question, one.before, max_tokens, sampling.top_p) for one in prompts]
        replies = {
            one.id: Reply(
                f"t {OUTPUT}{one.question}{OUTPUT_END}", 1, 0, None, "cut" in one.question
            )
            for one in prompts
            if one.question != "long"
        }
        return replies, {one.id: "no room" for one in prompts if one.question == "long"}


@pytest.mark.parametrize("part", [True, False])
def test_a_model_of_the_run_says_all_or_its_final_answer(tmp_path, part):
    drawn = Sampling(temperature=1.0, top_p=0.5, max_tokens=9)
    answers = Answers(run_of(tmp_path))
    model = EngineModel(answers, whole=part)
    talks = [(("system", "s"), ("user", said)) for said in ("one", "long", "cut", "one")]
    found = model.ask(talks, seeds=[1, 1, 1, 1], sampling=drawn)
    one = f"t {OUTPUT}one{OUTPUT_END}" if part else "one"
    assert (found[0], found[1], found[3]) == (one, "", one)
    assert model.ends == {
        digest(talks[1], 1, drawn): "no_room",
        digest(talks[2], 1, drawn): "cut",
    }
    assert len(answers.asked) == 3  # the same with the same seed once
    assert answers.asked[0] == ("one", (("system", "s"),), 9, 0.5)


def test_a_model_of_the_run_that_attacks_needs_memory_beside_the_target(tmp_path):
    roles = ("evaluate__attacker", "evaluate__attack_judge")

    def parts(*names):
        given = dict(zip(roles, names, strict=True))
        return set(
            needs.memory_of(run_of(tmp_path, evaluate__attacks="pair", **given), EVALUATE, SPEC)
        )

    plain = parts(f"m@{HTTP}", f"m@{HTTP}")
    assert parts("sft", "dpo-1") - plain == {"the engine of sft", "the engine of dpo-1"}
    assert parts("sft", "sft") - plain == {"the engine of sft"}
