"""The examples run as their readers run them, and show what their docstrings promise."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

from stair_jax.miniature import tokenizer
from stair_jax.text import Codec

ROOT = pathlib.Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
LINES = 60


def output_of(name, folder):
    """What an example prints, run outside the repository, offline and on a CPU."""
    env = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
        "PYTHONWARNINGS": "ignore",
    }
    command = [sys.executable, str(ROOT / "examples" / f"{name}.py")]
    found = subprocess.run(
        command, cwd=folder, env=env, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr[-2000:]
    assert not [*folder.iterdir()]  # nothing is left behind
    return found.stdout


def test_every_example_is_short_and_run_here():
    tests = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert {path.stem for path in EXAMPLES} <= tests
    for path in EXAMPLES:
        assert len(path.read_text().splitlines()) <= LINES, path.name


def test_grow_a_tree(tmp_path):
    lines = output_of("grow_a_tree", tmp_path).splitlines()
    nodes = [re.fullmatch(r"( *)(0[.\d]*): (\d+) visits, ([+-]\d\.\d\d)  (.*)", x) for x in lines]
    assert all(nodes)
    found = {node[2]: node for node in nodes if node}
    assert int(found["0"][3]) >= 24  # every iteration passes the root
    for tag, node in found.items():
        assert len(node[1]) == 2 * tag.count(".")
        assert tag == "0" or node[5].startswith("<|")
    assert any(node[5].endswith("<|/Output|>") for node in found.values())  # the format was learned
    assert max(tag.count(".") for tag in found) >= 2
    values = {node[4] for tag, node in found.items() if node[3] == "1"}
    assert values <= {"+3.00", "+1.50", "-1.00"}  # right, wrong, without an answer


def test_train_dpo(tmp_path):
    first, *steps = output_of("train_dpo", tmp_path).splitlines()
    assert "rather than" in first
    found = [re.fullmatch(r"step \d+: loss ([\d.]+), margin ([+-][\d.]+)", x) for x in steps]
    losses, margins = zip(*((float(x[1]), float(x[2])) for x in found if x), strict=True)
    assert len(steps) == len(losses) == 10
    assert (margins[0], losses[0]) == (0.0, 0.693)  # policy and reference are equal: log 2
    assert margins[-1] > margins[4] > 0.05
    assert losses[-1] < losses[4] < losses[0]


def test_score_steps(tmp_path):
    *steps, last = output_of("score_steps", tmp_path).splitlines()
    scores = [float(step.split()[0]) for step in steps]
    assert len(set(scores)) == 4
    codec = Codec(tokenizer.build(), "llama3")
    words = [codec.encode(step.partition("  ")[2]) for step in steps]
    asked = codec.prompt_ids("what is 4 plus 3 ?")
    computed = len(asked) + sum(map(len, words))  # each token once, the shared ones too
    assert last.startswith(f"{computed} tokens computed, ")


@pytest.mark.parity
def test_export_model(tmp_path):
    pytest.importorskip("torch")
    *files, same, difference = output_of("export_model", tmp_path).splitlines()
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= {*files}
    assert same == "same tokens: True"
    assert float(difference.rpartition(" ")[2]) < 1e-4


def test_add_a_benchmark(tmp_path):
    said = output_of("add_a_benchmark", tmp_path)
    assert "sums: a number ↑" in said
    row = next(line for line in said.splitlines() if line.startswith("| base"))
    assert "0.0 (0-19)" in row  # the interval of none of sixteen
