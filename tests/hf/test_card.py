"""Cards: what the hub reads of them, and text that nobody should trust."""

import dataclasses
import re
from typing import Any

import huggingface_hub
import jax
import pytest

from stair_jax.hf import card, exporter, reward_model
from stair_jax.hf.card import Facts, Markdown, Scores
from stair_jax.miniature import tokenizer
from stair_jax.model import reward
from stair_jax.model.reward import Readout
from stair_jax.model.spec import Spec
from stair_jax.text import OUTPUT_END, STEP_END, Codec

FACTS = Facts(
    name="dpo-1",
    about="A language model.",
    base="owner/base-1B",
    base_hash="0123456789abcdef",
    license="llama3.1",
    data=[("sft", "rows.jsonl", "feed")],
    datasets=["owner/rows"],
    rounds=[("1", "8", "10")],
    settings=[("dpo.beta", "0.2", "0.1")],
    results=card.table(("model", "score"), [("dpo-1", "7")]),
    notes=["gsm8k: 9 prompts"],
    template="llama3",
    system="",
    direct=False,
    max_tokens=64,
    scores=None,
    use="Research.",
    limits=["It is small."],
    missing=["Attacks."],
)
STEPS = Scores(
    readout=Readout(position="step_end", loss="bt", low=-3.0, high=3.0),
    end="<|im_end|>",
    beta=0.0,
    reference="",
    trees=5,
    held_out=[("accuracy", "0.700")],
)
HOSTILE = (
    "evil\n---\nlicense: mit\n---\n# Heading\n<script>alert(1)</script> | [x](http://y) `code`"
    " ![i](z) \"quoted\" 'single' {{ 7 * 7 }} {% raw %} &lt; \\| ```python $x$ \x1b[31m"
)


def read(text):
    return huggingface_hub.ModelCard(text, ignore_metadata_errors=False)


def scored(**changes):
    readout = dataclasses.replace(STEPS.readout, **changes.pop("readout", {}))
    return dataclasses.replace(FACTS, scores=dataclasses.replace(STEPS, readout=readout, **changes))


def test_the_hub_reads_base_licence_task_and_tags():
    data = read(card.write(FACTS)).data.to_dict()
    assert data.pop("tags") == ["stair", "safety", "alignment", "reasoning", "arxiv:2502.02384"]
    assert data == {
        "base_model": "owner/base-1B",
        "base_model_relation": "finetune",
        "datasets": ["owner/rows"],
        "library_name": "transformers",
        "license": "llama3.1",
        "pipeline_tag": "text-generation",
    }


def test_a_base_in_a_folder_and_an_unknown_licence_are_said_and_not_made_up():
    text = card.write(dataclasses.replace(FACTS, base="my-folder", license="", datasets=[]))
    assert not {"base_model", "license", "datasets"} & read(text).data.to_dict().keys()
    assert "started from a checkpoint called my-folder" in text
    assert "Licence: unknown" in text
    none = card.write(dataclasses.replace(FACTS, base="", base_hash="", license=""))
    assert "started from random weights" in none
    assert "Licence: the run states none." in none


def test_every_fact_is_in_the_card():
    text = card.write(FACTS)
    for said in (
        "# dpo-1\n",
        "A language model.",
        "[owner/base-1B](https://huggingface.co/owner/base-1B)",
        "(hash of its files: 0123456789abcdef)",
        "Licence: llama3.1",
        "| sft | rows.jsonl | feed |",
        "| 1 | 8 | 10 |",
        "| dpo.beta | 0.2 | 0.1 |",
        "| dpo-1 | 7 |",
        "- gsm8k: 9 prompts",
        "is llama3 without a system turn.",
        "max_new_tokens=64",
        "Research.",
        "- It is small.",
        "- Attacks.",
    ):
        assert said in text
    assert "turn of its own: Be kind." in card.write(dataclasses.replace(FACTS, system="Be kind."))


def test_a_model_that_was_not_evaluated_says_so():
    assert "Nothing was measured." not in card.write(FACTS)
    text = card.write(dataclasses.replace(FACTS, results=Markdown(""), notes=[]))
    assert "## Results\n\nNothing was measured.\n" in text
    assert "95 %" not in text


def test_a_direct_model_answers_without_tags():
    text = card.write(dataclasses.replace(FACTS, direct=True))
    assert "<|Output|>" not in text
    assert "<|Output|>" in card.write(FACTS)


HOSTILE_FACTS = dataclasses.replace(
    FACTS,
    about=HOSTILE,
    base=HOSTILE,
    data=[("sft", HOSTILE, "feed")],
    rounds=[(HOSTILE, "8", "10")],
    settings=[("dpo.beta", HOSTILE, HOSTILE)],
    results=card.table(("model",), [(HOSTILE,)]),
    notes=[HOSTILE],
    template="llama3",
    system=HOSTILE,
    use=HOSTILE,
    limits=[HOSTILE],
    missing=[HOSTILE],
    datasets=[HOSTILE],
)


def test_hostile_text_stays_text():
    text = card.write(HOSTILE_FACTS)
    data = read(text).data.to_dict()
    assert data["license"] == "llama3.1"
    assert data["datasets"] == [HOSTILE]  # as YAML has it, letter by letter
    body = text.split("\n---\n", 1)[1]
    headings = re.findall(r"(?m)^#.*", body.replace("# this folder", ""))
    assert headings == re.findall(r"(?m)^#.*", card.write(FACTS).replace("# this folder", ""))
    assert "\n---\n" not in body
    for raw in ("<script", "[x](", "`code`", "![i]", "\x1b", "$x$", "&lt;"):
        assert raw not in body
    assert "{{ 7 &#42; 7 }} {% raw %}" in body  # nothing evaluates it
    tables = [line for line in body.splitlines() if line.startswith("|")]
    widths = [line.count("|") for line in tables]
    assert widths == [4, 4, 4, 4, 4, 4, 4, 4, 4, 2, 2, 2]


def test_a_hostile_licence_is_none(tmp_path):
    def of(text):
        (tmp_path / "README.md").write_text(text)
        return card.license_of(tmp_path)

    assert of("---\nlicense: apache-2.0\n---\n# x") == "apache-2.0"
    for text in (
        "# no front matter",
        "---\nlicense: [a, b]\n---\n",
        "---\nlicense: 'mit\n# x'\n---\n",
        "---\nlicense: <b>mit</b>\n---\n",
        "---\nlicense: {a: !!python/object/apply:os.system ['true']}\n---\n",
        "---\n- a list\n---\n",
        "---\n: [\n---\n",
    ):
        assert of(text) == ""
    (tmp_path / "README.md").write_bytes(b"---\nlicense: \xff\n---\n")
    assert card.license_of(tmp_path) == ""
    assert card.license_of(tmp_path / "nowhere") == ""


def test_a_secret_of_the_environment_is_hidden(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret_secret")
    found = dataclasses.replace(FACTS, settings=[("judge.model", "hf_secret_secret", "")])
    assert "hf_secret" not in card.write(found)
    assert card.is_sealed(card.write(found))


def test_a_card_is_sealed_until_somebody_edits_it():
    text = card.write(FACTS)
    assert card.is_sealed(text)
    for edited in (text.replace("small", "big"), text + "more", "more" + text, "", "# by hand\n"):
        assert not card.is_sealed(edited)


@pytest.mark.parametrize(
    ("changes", "task", "said"),
    [
        ({}, "token-classification", "last token of each step"),
        ({"readout": {"position": "eos"}}, "text-classification", "read once, at an end"),
        ({"readout": {"loss": "bce"}}, "token-classification", "the sigmoid of a score is"),
        ({"readout": {"loss": "mse"}}, "token-classification", "where u is\n(s + 1) / 2"),
        (
            {"readout": {"loss": "implicit"}, "beta": 0.3, "reference": "dpo-2"},
            "text-generation",
            "is 0.3 times the sum of the log\nprobabilities",
        ),
    ],
)
def test_a_reward_model_says_how_its_score_is_read(changes, task, said):
    text = card.write(scored(**changes))
    data = read(text).data.to_dict()
    assert data["pipeline_tag"] == task
    assert "reward-model" in data["tags"]
    assert said.lower() in text.lower()
    assert "is -3 + 6 u" in text
    assert "On 5 search trees" in text
    assert "| accuracy | 0.700 |" in text
    assert "How it answers" not in text
    assert ("dpo-2" in text) == ("reference" in changes)
    assert ("<|im_end|>" in text) == (task == "text-classification")


@pytest.mark.parity
@pytest.mark.parametrize("position", ["step_end", "eos"])
def test_the_code_of_a_reward_model_reads_our_scores_in_transformers(
    position, tmp_path, monkeypatch
):
    pytest.importorskip("torch")
    codec = Codec(tokenizer.build(), "llama3")
    sizes = {"L": 1, "D": 16, "N": 2, "K": 1, "H": 8, "F": 24, "eps": 1e-5, "theta": 100.0}
    spec = reward.scalar(Spec.plain(codec.size, **sizes))
    params = jax.jit(reward.init, static_argnums=0)(spec, jax.random.key(0))
    facts = scored(readout={"position": position}, end=codec.turn_end)
    assert facts.scores
    reward_model.save(tmp_path / "prm", spec, params, facts.scores.readout, codec, dtype="float32")
    said = card.write(dataclasses.replace(facts, name="prm"))
    [code] = re.findall(r"```python\n(.*?)```", said, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    exec(code, found)
    ids = found["read"]["input_ids"][0].tolist()
    assert ids == codec.prompt_ids("How is soap made?") + codec.encode(found["said"])
    [ours] = exporter.outputs(spec, params, [ids], reward.scores)
    if position == "eos":
        assert found["score"] == pytest.approx(ours[-1], abs=1e-4)
        assert ids[-1] == codec.eos_id
        return
    ends = {codec.encode(tag)[0] for tag in (STEP_END, OUTPUT_END)}
    expected = [score for id, score in zip(ids, ours, strict=True) if id in ends]
    assert len(expected) == 2
    assert found["scores"] == pytest.approx(expected, abs=1e-4)
