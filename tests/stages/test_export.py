"""Stage export, on a model of next to nothing: card, what is written twice, and uploads."""

import re
import shutil

import pytest
from huggingface_hub import constants

from stair_jax import text
from stair_jax.run import models
from tests.support.hub_server import logged_in
from tests.support.workdirs import run

REPO = "somebody/a-model"


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A workdir with the export of random weights; made once."""
    workdir = tmp_path_factory.mktemp("export") / "w"
    run(workdir, stages="export")
    return workdir


@pytest.fixture
def copied(exported, tmp_path):
    shutil.copytree(exported, tmp_path / "w")
    return tmp_path / "w"


def card_of(workdir):
    return workdir / "export" / "base" / "README.md"


def test_the_card_lies_beside_the_model_and_names_no_place(exported):
    said = card_of(exported).read_text()
    assert "# base\n" in said
    assert "Nothing was measured." in said
    for file in card_of(exported).parent.glob("*"):
        if file.suffix in (".md", ".json", ".jinja"):
            assert str(exported.parent) not in file.read_text(), file.name


def test_only_an_export_that_is_not_whole_is_written_again_and_an_edited_card_survives(
    copied, monkeypatch
):
    weights = card_of(copied).with_name("model.safetensors")
    mine = card_of(copied).read_text() + "\nAsk me about it.\n"
    card_of(copied).write_text(mine)
    before, whole = weights.stat().st_mtime_ns, weights.read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(models, "load", None)  # nothing reads the model for that
        run(copied, stages="export")
        assert weights.stat().st_mtime_ns == before
        with pytest.raises(TypeError):
            run(copied, stages="export", export__dtype="bfloat16")
        weights.write_bytes(whole[:-1])
        with pytest.raises(TypeError):
            run(copied, stages="export")
    run(copied, stages="export")
    assert weights.read_bytes() == whole
    assert card_of(copied).read_text() == mine


@pytest.mark.parity
def test_the_code_of_the_card_answers_in_transformers(exported, monkeypatch):
    pytest.importorskip("torch")
    [code] = re.findall(r"```python\n(.*?)```", card_of(exported).read_text(), re.DOTALL)
    monkeypatch.chdir(exported / "export")
    found = {}
    exec(code, found)
    assert found["said"]
    line = code.splitlines()[-1]
    for said in (f"x{text.OUTPUT}4 2{text.OUTPUT_END}<|eot_id|>", "no answer"):
        found["said"] = said
        exec(line, found)
        assert found["answer"] == text.final_answer(said)


@pytest.fixture
def hub(monkeypatch):
    with logged_in(monkeypatch) as running:
        yield running


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_an_upload_that_failed_goes_on_from_the_finished_export(copied, hub, monkeypatch):
    hub.fault = lambda method, path: 400 if path.endswith("/commit/main") else None
    flags = {"stages": "export", "export__push": REPO}
    monkeypatch.setattr(models, "load", None)  # nothing reads the model, the export is there
    with pytest.raises(ValueError, match=rf"push: {REPO}: .*/base is whole, the same command"):
        run(copied, **flags)
    hub.fault = lambda method, path: None
    run(copied, **flags)
    files = {path.name: path.read_bytes() for path in card_of(copied).parent.iterdir()}
    assert hub.repos[REPO]["files"] == files
    assert hub.repos[REPO]["private"] is True
    run(copied, **flags)
    assert hub.repos[REPO]["commits"] == 1
    run(copied, **flags | {"export__push": "somebody/open", "export__push_private": False})
    assert hub.repos["somebody/open"]["private"] is False


def test_an_upload_that_cannot_work_is_refused_before_anything_runs(tmp_path, hub, monkeypatch):
    def refused(name, said):
        with pytest.raises(ValueError, match=rf"config\.export\.push: .*{said}"):
            run(tmp_path / "w", stages="sft,export", export__push=name)
        assert not (tmp_path / "w" / "sft").exists()

    refused("no-owner", "expected owner/name")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    refused(REPO, "no token")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refused(REPO, "HF_HUB_OFFLINE")
    assert not hub.asked


def test_settings_of_an_upload_that_would_be_ignored_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"config\.export\.push: .* needs export in config"):
        run(tmp_path / "w", export__push=REPO)
    with pytest.raises(ValueError, match=r"push_private: False would be ignored"):
        run(tmp_path / "w", stages="export", export__push_private=False)
