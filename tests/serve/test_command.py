"""The command line: what it refuses before it loads anything, and what it serves."""

import builtins
import json
import socket
import sys

import pytest

from stair_jax import chat, main
from stair_jax.serve import command, running, served
from stair_jax.serve.command import KEY
from tests.support import serving
from tests.support.configs import tiny

SECRET = "sixteen-letters-or-more"


@pytest.fixture
def serve(tmp_path, monkeypatch, capsys):
    """Starts the command up to where it would listen: `serve(*flags)` returns what it would do."""
    found = {}

    def load(run, names, *, search, alias):
        found.update(run=run, names=list(names), search=search, alias=alias)
        return [serving.serve_model(tmp_path, alias or "sft")]

    async def listen(models, listening, limits, key):
        found.update(models=models, limits=limits, key=key, port=listening.getsockname()[1])
        return found.get("failed", False)

    (tmp_path / "config.json").write_text(tiny(workdir=str(tmp_path)).to_json())
    monkeypatch.setattr(served, "load", load)
    monkeypatch.setattr(running, "listen", listen)
    monkeypatch.setattr(command.logging, "basicConfig", lambda **_: None)
    monkeypatch.delenv(KEY, raising=False)

    def run(*flags, place=tmp_path, failed=False):
        found["failed"] = failed
        command.main([str(place), "--port=0", "--compile_later", *flags])
        return found | {"said": capsys.readouterr().err}

    return run


def test_it_says_where_clients_may_ask(serve):
    found = serve()
    assert f"http://127.0.0.1:{found['port']}/v1 (no key)" in found["said"]
    assert found["limits"].slots == serving.ENGINE.slots
    assert (found["names"], found["search"], found["key"]) == ([], False, "")


FLAGS = [
    ("queue", "3", "queue", 3),
    ("body_bytes", "99", "body_bytes", 99),
    ("max_tokens", "7", "max_tokens", 7),
    ("timeout_s", "2.5", "timeout_s", 2.5),
    ("drain_s", "1.5", "drain_s", 1.5),
]


@pytest.mark.parametrize(("flag", "given", "name", "value"), FLAGS)
def test_every_limit_is_set_by_its_flag(serve, flag, given, name, value):
    assert getattr(serve()["limits"], name) != value
    assert getattr(serve(f"--{flag}={given}")["limits"], name) == value


@pytest.mark.parametrize(
    ("flag", "value"), [("slots", 3), ("chunk", 5), ("max_context", 77), ("pool_bytes", 10**6)]
)
def test_every_size_of_the_engine_is_set_by_its_flag(serve, flag, value):
    assert serve()["run"].config.engine[flag] != value
    assert serve(f"--{flag}={value}")["run"].config.engine[flag] == value


def test_models_and_search_are_handed_on(serve, tmp_path):
    assert serve("--models=sft,dpo-1")["names"] == ["sft", "dpo-1"]
    assert serve("--name=mine")["alias"] == "mine"
    (tmp_path / "lineage.json").unlink(missing_ok=True)
    serving.serve_model(tmp_path, search=True)  # notes a reward model
    found = serve("--search", "--prefix_least=0.25")
    assert found["search"]
    assert found["limits"].prefix_least == 0.25


def test_a_hugging_face_folder_is_served_by_its_name(serve, tmp_path):
    folder = tmp_path / "smol"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    found = serve(place=folder)
    assert found["run"].config.model.checkpoint == str(folder)
    assert found["run"].workdir != folder  # nothing is written there
    assert (found["alias"], found["run"].config.engine.slots) == ("smol", 16)
    with pytest.raises(SystemExit, match=r"--models: .* is a folder of one model"):
        serve("--models=sft", place=folder)


def test_a_key_comes_from_the_environment_or_a_file_and_is_not_shown(serve, tmp_path, monkeypatch):
    monkeypatch.setenv(KEY, SECRET)
    found = serve()
    assert (found["key"], SECRET in found["said"]) == (SECRET, False)
    assert "a key is asked for" in found["said"]
    path = tmp_path / "key"
    path.write_text(f"{SECRET}-of-a-file\n")
    assert serve(f"--key_file={path}")["key"] == f"{SECRET}-of-a-file"


BAD = [
    (["--slots=0"], "--slots: 0, expected 1 or more"),
    (["--queue=-1"], "--queue: -1, expected 0 or more"),
    (["--timeout_s=0"], "--timeout_s: 0.0, expected more than 0"),
    (["--drain_s=nan"], "--drain_s: nan, expected more than 0"),
    (["--host=0.0.0.0"], "--host: 0.0.0.0 can be reached from elsewhere, which wants a key"),
    (["--host=example.org"], "wants a key"),
    (["--port=70000"], "--host, --port: 127.0.0.1:70000"),
    (["--search"], "--search: asks a reward model, and there is none"),
    (["--prefix_least=2", "--search"], "--prefix_least: 2.0, expected 0 to 1"),
    (["--prefix_least=0.5"], "--prefix_least: asks the reward model, which --search loads"),
    (["--models=sft,dpo-1", "--name=x"], "--name: 'x', and there are several models"),
    (["--key_file=/nowhere"], "No such file"),
]


@pytest.mark.parametrize(("flags", "message"), BAD)
def test_what_cannot_work_ends_in_one_line(serve, flags, message):
    with pytest.raises(SystemExit, match=message) as ended:
        serve(*flags)
    assert str(ended.value).startswith("error: ")
    assert "\n" not in str(ended.value)


@pytest.mark.parametrize("key", ["short", "with spaces within it", "no ascii, but a é in it", ""])
def test_a_key_that_can_be_guessed_or_not_be_sent_is_refused(serve, tmp_path, key):
    path = tmp_path / "key"
    path.write_text(key)
    with pytest.raises(SystemExit, match=r"--key_file: .*expected"):
        serve(f"--key_file={path}")


def test_a_port_that_is_taken_is_told(serve, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit, match=f"127.0.0.1:{port}: Address already in use"):
            serve(f"--port={port}")


def test_a_place_that_is_neither_is_told(serve, tmp_path):
    with pytest.raises(SystemExit, match=r"expected the workdir of a run or a Hugging Face folder"):
        serve(place=tmp_path / "nowhere")


def test_a_failed_engine_ends_with_an_error(serve):
    with pytest.raises(SystemExit, match="the engine has failed"):
        serve(failed=True)


def test_without_its_libraries_it_says_how_to_get_them(monkeypatch):
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name == "stair_jax.serve":
            raise ModuleNotFoundError("No module named 'fastapi'", name="fastapi")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    monkeypatch.setattr(sys, "argv", ["stair-jax", "serve", "x"])
    with pytest.raises(SystemExit, match=r"serve needs fastapi: pip install 'stair-jax\[serve\]'"):
        main.command_line()


def test_the_word_is_in_the_help(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["stair-jax", "--help"])
    main.command_line()
    assert "stair-jax serve WORKDIR_OR_FOLDER" in capsys.readouterr().out


def test_a_workdir_is_read_as_chat_reads_it(tmp_path):
    with pytest.raises(ValueError, match="expected the workdir of a run"):
        chat.config_of(tmp_path)
