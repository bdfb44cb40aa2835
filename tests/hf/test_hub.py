"""Uploads, to a hub on loopback."""

import pytest
from huggingface_hub import constants

from stair_jax.hf import hub
from tests.support.hub_server import TOKEN, logged_in

# The hub's client calls its HTTP library in a way that the latter warns of.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
REPO = "somebody/a-model"


@pytest.fixture
def server(monkeypatch):
    with logged_in(monkeypatch) as running:
        yield running


@pytest.fixture
def folder(tmp_path):
    found = tmp_path / "dpo-1"
    found.mkdir()
    (found / "README.md").write_text("---\nlibrary_name: transformers\n---\n\n# dpo-1\n")
    (found / "config.json").write_text("{}")
    (found / "model.safetensors").write_bytes(b"weights" * 1000)
    return found


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_folder_arrives_whole_in_a_repository_that_is_private(server, folder):
    address = hub.push(folder, REPO, private=True)
    assert address == f"{server.url}/{REPO}"
    found = server.repos[REPO]
    assert found["private"] is True
    assert found["files"] == files_of(folder)
    assert len(server.sent) == 1  # the weights alone go through LFS


def test_what_is_there_already_is_not_sent_again(server, folder):
    hub.push(folder, REPO, private=True)
    server.sent.clear()
    hub.push(folder, REPO, private=True)
    assert not server.sent
    assert server.repos[REPO]["commits"] == 1
    (folder / "README.md").write_text("another card")
    hub.push(folder, REPO, private=True)
    assert not server.sent
    assert server.repos[REPO]["commits"] == 2
    assert server.repos[REPO]["files"] == files_of(folder)


def test_weights_of_an_earlier_export_do_not_stay_beside_the_new_ones(server, folder):
    for name in ("model-00001-of-00002.safetensors", "model.safetensors.index.json", "notes.txt"):
        (folder / name).write_bytes(b"old")
    hub.push(folder, REPO, private=True)
    for name in ("model-00001-of-00002.safetensors", "model.safetensors.index.json", "notes.txt"):
        (folder / name).unlink()
    hub.push(folder, REPO, private=True)
    assert server.repos[REPO]["files"] == files_of(folder) | {"notes.txt": b"old"}


def test_nothing_is_sent_to_a_public_repository_unasked(server, folder):
    server.repos[REPO] = {"private": False, "files": {}, "commits": 0}
    with pytest.raises(ValueError, match=rf"push: {REPO} is public; .*push_private=False"):
        hub.push(folder, REPO, private=True)
    assert not server.sent
    assert not server.repos[REPO]["commits"]
    hub.push(folder, REPO, private=False)
    assert server.repos[REPO]["files"] == files_of(folder)


@pytest.mark.parametrize("where", ["/api/repos/create", "/commit/main", "/lfs/"])
def test_a_failure_is_one_line_and_the_next_try_goes_on(server, folder, where):
    server.fault = lambda method, path: 400 if where in path else None
    with pytest.raises(ValueError, match=rf"^config\.export\.push: {REPO}: ") as caught:
        hub.push(folder, REPO, private=True)
    assert "\n" not in str(caught.value)
    assert TOKEN not in str(caught.value)
    server.fault, before = lambda method, path: None, len(server.asked)
    hub.push(folder, REPO, private=True)
    assert server.repos[REPO]["files"] == files_of(folder)
    resent = any(line.startswith("PUT /lfs/") for line in server.asked[before:])
    assert resent == (where != "/commit/main")  # weights that had arrived are not sent again


def test_no_connection_and_a_wrong_token_are_one_line(server, folder, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    with pytest.raises(ValueError, match=r"push: somebody/a-model: .*401") as caught:
        hub.push(folder, REPO, private=True)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ValueError, match=r"push: somebody/a-model: Connect") as refused:
        hub.push(folder, REPO, private=True)
    for error in (caught, refused):
        assert "\n" not in str(error.value)
        assert "hf_another" not in str(error.value)


@pytest.mark.parametrize(
    "name", ["model", "/model", "a/", "a/b/c", "a b/c", "a/b--c", "a/..b", "a/-b", "https://x/y"]
)
def test_a_name_that_no_repository_can_have_is_refused(server, name):
    with pytest.raises(ValueError, match=r"config\.export\.push: .* expected owner/name"):
        hub.check(name)


def test_an_upload_needs_a_token_and_a_client_that_may_go_online(server, monkeypatch, tmp_path):
    hub.check(REPO)
    assert not server.asked  # nobody was asked for that
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="HF_HUB_OFFLINE is set"):
        hub.check(REPO)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    with pytest.raises(ValueError, match="set HF_TOKEN, or run `hf auth login`"):
        hub.check(REPO)
    (tmp_path / "token").write_text(TOKEN)
    hub.check(REPO)
