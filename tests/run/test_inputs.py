"""What is said of a checkpoint before the first stage: whatever of it is not used."""

import logging

import pytest

from stair_jax.log.metrics import Metrics
from stair_jax.run import inputs
from stair_jax.run.lineage import Lineage
from stair_jax.run.workdir import Run
from stair_jax.text import TEMPLATES
from tests.support.configs import tiny
from tests.support.hf_folders import TIED, edit_json, make_tokenizer, save


@pytest.fixture
def said(tmp_path, caplog):
    """Looks at a small Llama that speaks ChatML, and returns what was said: `said(**changes)`."""
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = (
        "{% if messages[0]['role'] != 'system' %}"
        "<|im_start|>system\nYou are Smol.<|im_end|>\n{% endif %}" + TEMPLATES["chatml"]
    )
    folder = save(tmp_path / "model", TIED, tokenizer=tokenizer, end_ids=[258])

    def look(**changes):
        edit_json(folder / "config.json", **changes.pop("config", {}))
        c = tiny(workdir=str(tmp_path), model__checkpoint=str(folder), **changes)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            inputs.look(Run(c, tmp_path, Lineage(tmp_path / "lineage.json"), Metrics(tmp_path)), [])
        return "\n".join(record.getMessage() for record in caplog.records)

    return look


def test_a_system_turn_of_the_models_own_is_told_unless_one_is_set(said):
    text = said()
    assert "puts a system turn first, 'You are Smol.', which is left out" in text
    assert "set --config.model.system" in text
    assert "system turn" not in said(model__system="You are Smol.")


def test_an_end_that_is_an_ordinary_token_is_told(said):
    assert "ordinary token" not in said()
    assert "ends a response at 'c', an ordinary token" in said(config={"eos_token_id": [258, 66]})


def test_python_of_a_checkpoint_is_told(said):
    assert "auto_map" not in said()
    assert "auto_map of config.json names Python of its own, which never runs" in said(
        config={"auto_map": {"AutoModelForCausalLM": "x.Y"}}
    )
