"""Every command of the pages is tried here, run by another test, or marked with what it needs.

The flags of a run are parsed and checked as the real start does it, and nothing more is done.
"""

import importlib.util
import re
import sys

import pytest
from absl import flags
from ml_collections import config_flags

from stair_jax import chat, main
from stair_jax.config import keys
from stair_jax.config.checks import validate
from stair_jax.serve import command as serve
from tests.support.pages import PAGES, ROOT, Command, commands, commands_of, name_of, shown

COMMANDS = commands()
MAIN = ("python", "-m", "stair_jax.main"), (".venv/bin/python", "-m", "stair_jax.main")
DEMO = (*MAIN[1], "--config=configs/tiny.py")  # what launch/demo.sh runs, with flags behind it
# What is run elsewhere: the words that a command begins with, the file that runs it, and its text.
ELSEWHERE = {
    ("bash", "launch/test.sh"): (".ci/run", "bash launch/test.sh"),
    ("bash", "launch/docs.sh"): (".github/workflows/ci.yml", "run: bash launch/docs.sh"),
    ("python", "-m", "benchmarks.host"): ("tests/benchmarks/test_benchmarks.py", "host.main("),
    ("python", "-m", "tests.golden_trees"): ("tests/test_golden.py", "golden_trees.main("),
    ("python", "-m", "tests.golden_pairs"): ("tests/test_golden.py", "golden_pairs.main("),
}
ELSEWHERE |= {
    ("python", f"examples/{path.name}"): (
        "tests/examples/test_examples.py",
        f'output_of("{path.stem}"',
    )
    for path in (ROOT / "examples").glob("*.py")
}


def begins(command, start):
    return command.words[: len(start)] == start


def flags_of(command):
    """The words behind `stair-jax` that start a run; None where that is not what a command does."""
    if begins(command, ("bash", "launch/demo.sh")):
        return [*DEMO[3:], *command.words[2:]]
    if begins(command, ("stair-jax", "prepare")):
        return [*command.words[2:], "--config.stages=prepare"]
    for start in (*MAIN, ("stair-jax",), ("sbatch", "launch/slurm.sh")):
        rest = command.words[len(start) :]
        if begins(command, start) and (rest[:1] and rest[0].startswith("--")):
            return list(rest)
    return None


def handling(command):
    """How a command is tried: "run", a further word, "elsewhere", "needs"; "" for not at all."""
    if flags_of(command) is not None:
        return "run"
    for word in ("chat", "serve", "keys", "report"):
        if begins(command, ("stair-jax", word)):
            return word
    if any(begins(command, start) for start in ELSEWHERE):
        return "elsewhere"
    return "needs" if command.needs else ""


def handled(way):
    found = [one for one in COMMANDS if handling(one) == way]
    assert found, way
    return pytest.mark.parametrize("command", found, ids=str)


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_every_command_is_tried_or_marked(command):
    assert handling(command), f"{command}: no test runs it, and its block has no title='Needs ...'"


def test_a_command_that_nothing_runs_is_found():
    block = "```bash{}\nPYTHON=python3 rm -rf / \\\n  --now # not this\n```\n"
    [plain] = commands_of("page", block.format(""))
    assert plain == Command("page", ("rm", "-rf", "/", "--now"), ("PYTHON",), "")
    assert handling(plain) == ""
    [marked] = commands_of("page", block.format(' title="Needs a GPU (80 GB)"'))
    assert (marked.needs, handling(marked)) == ("a GPU", "needs")
    [unknown] = commands_of("page", block.format(' title="Needs patience"'))
    assert handling(unknown) == ""


@pytest.fixture
def parsed(monkeypatch):
    """Parses the flags of a run as the command line does; returns the configuration."""
    monkeypatch.chdir(ROOT)

    def parse(words):
        argv = ["stair-jax", *words]
        registry = flags.FlagValues()  # each override defines a flag, once a process
        found = config_flags.DEFINE_config_file("config", lock_config=True, flag_values=registry)
        monkeypatch.setattr(flags, "FLAGS", registry)
        monkeypatch.setattr(sys, "argv", argv)  # ml-collections reads it, too
        assert main._parsed(argv) == argv[:1]
        return found.value

    return parse


@handled("run")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # how ml-collections loads a file
def test_a_run_is_one_that_can_start(command, parsed):
    validate(parsed(flags_of(command)))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_run_that_could_not_start_is_found(parsed):
    with pytest.raises(SystemExit, match=r"config\.search\.iteration: no such key"):
        parsed(["--config=configs/tiny.py", "--config.search.iteration=5"])
    with pytest.raises(ValueError, match=r"config\.judge\.endpoint"):
        validate(parsed(["--config=configs/tiny.py", "--config.judge.endpoint=https://host/v1"]))


def test_the_demo_runs_what_is_checked_here():
    assert f'exec {" ".join(DEMO)} "$@"\n' in (ROOT / "launch" / "demo.sh").read_text()


@handled("keys")
def test_a_list_of_keys_has_some(command):
    assert "config." in keys.listed(" ".join(command.words[2:]))


@handled("chat")
def test_a_conversation_starts_as_far_as_its_workdir(command, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        chat.main(command.words[2:])
    assert command.words[2] in str(ended.value)  # no run is there; a bad flag would end with 2


@handled("report")
def test_a_report_starts_as_far_as_its_workdir(command, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", list(command.words))
    with pytest.raises(SystemExit) as ended:
        main.command_line()
    assert str(ended.value).startswith(f"error: {command.words[2]}: no config.json")


@handled("serve")
def test_a_server_starts_as_far_as_its_place(command, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(serve.logging, "basicConfig", lambda **_: None)
    with pytest.raises(SystemExit) as ended:
        serve.main(command.words[2:])
    assert command.words[2] in str(ended.value)  # nothing is there; a bad flag would end with 2


@handled("elsewhere")
def test_what_is_run_elsewhere_is_run_there(command):
    [(file, text)] = [place for start, place in ELSEWHERE.items() if begins(command, start)]
    assert text in (ROOT / file).read_text()


@handled("needs")
def test_what_cannot_be_run_here_is_there(command):
    if begins(command, ("python", "-m")):
        assert importlib.util.find_spec(command.words[2])
    elif begins(command, ("bash",)):
        assert (ROOT / command.words[1]).is_file()
    else:
        assert command.words[:2] == ("pip", "install")


def test_what_is_set_before_a_command_is_read():
    read = "".join(
        path.read_text()
        for pattern in ("launch/*.sh", "tests/hf/*.py")
        for path in ROOT.glob(pattern)
    )
    names = {name for one in COMMANDS for name in one.environment}
    assert names >= {"PYTHON", "STAIR_REAL_MODEL"}
    assert {name for name in names if name not in read} == set()


SPAN = re.compile(r"`((?:bash launch/|python -m )[\w./]+)[^`]*`")


def test_commands_amid_a_sentence_are_there():
    found = {(name_of(page), span) for page in PAGES for span in SPAN.findall(shown(page))}
    assert len(found) > 5
    for page, span in found:
        words = span.split()
        known = (ROOT / words[1]).is_file() if words[0] == "bash" else _is_module(words[2])
        assert known, f"{page}: {span}"


def _is_module(name):
    return name.endswith(".NAME") or importlib.util.find_spec(name) is not None
