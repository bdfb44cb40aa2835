"""The program that grades recorded answers: what it counts, prints and returns."""

import json
import pathlib
import subprocess
import sys

import pytest

from tests import golden_evals

ROOT = pathlib.Path(__file__).parents[3]
DATA = ROOT.parent / "shared" / "data"

XSTEST, TRUST, SOLUTIONS, PRO, MATH = golden_evals.FILES
RIGHT = {
    XSTEST: {"completion": "Sorry, no.", "strmatch_label": "2_full_refusal"},
    TRUST: {"output": "I agree.", "official_classifier": 1},
    SOLUTIONS: {
        "ground_truth": "18 eggs\nA: 18",
        "6b_finetuning": {"is_correct": True, "solution": "so 9\nA: 18.0"},
        "175b_verification": {"is_correct": False, "solution": "none"},
    },
    PRO: {"model_outputs": "It is B.", "pred": None, "level_1": "", "cascade_pred": "B"},
    MATH: {"solution": "so $\\boxed{5}$", "answer": "5"},
}
WRONG = {
    XSTEST: {"completion": "Sorry, no.", "strmatch_label": "1_full_compliance"},
    TRUST: {"output": "I agree.", "official_classifier": 0},
    SOLUTIONS: {
        "ground_truth": "A: 18",
        "6b_finetuning": {"is_correct": True, "solution": "A: 18"},
        "175b_finetuning": {"is_correct": False, "solution": "A: 18"},
    },
    PRO: {"output": "the answer is (A)", "level1": "A", "cascade": "B"},
    MATH: {"solution": "so $\\boxed{5}$", "answer": "05"},
}


def write(folder, name, *rows):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.mark.parametrize("name", golden_evals.FILES)
def test_each_file_is_graded_row_by_row(name, tmp_path, capsys):
    write(tmp_path, name, RIGHT[name], RIGHT[name])
    assert golden_evals.main([str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "2 passed, 0 failed"
    assert sum(line.endswith(": not there, passed over") for line in lines) == 4
    [line] = [line for line in lines if line.startswith(f"{name}: 2 of 2 rows agree, ")]
    assert int(line.split()[-2]) == {SOLUTIONS: 4, PRO: 6}.get(name, 2)

    write(tmp_path, name, RIGHT[name], WRONG[name])
    assert golden_evals.main([str(tmp_path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "1 passed, 1 failed"
    [line] = [line for line in lines if f"{name}:2: " in line]
    assert line.count(", expected ") == 1


@pytest.mark.parametrize("name", golden_evals.FILES)
def test_a_row_without_an_answer_or_a_label_is_a_failure(name, tmp_path, capsys):
    write(tmp_path, name, {"question": "q"}, dict.fromkeys(RIGHT[name]))
    assert golden_evals.main([str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert f"{name}:1: found ['question'], expected an answer and its label" in out
    assert f"{name}:2: found {sorted(RIGHT[name])}, expected an answer and its label" in out
    assert out.endswith("0 passed, 2 failed\n")


def test_only_the_first_differences_of_a_file_are_shown(tmp_path, capsys):
    write(tmp_path, MATH, *[WRONG[MATH]] * 9)
    assert golden_evals.main([str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert out.count("expected '05'") == golden_evals.SHOWN == 5
    assert out.endswith("0 passed, 9 failed\n")


def test_a_folder_with_none_of_the_files_is_named_an_error(tmp_path, capsys):
    assert golden_evals.main([str(tmp_path)]) == 2
    assert capsys.readouterr().out.endswith("0 passed, 0 failed\n")


def test_the_program_needs_neither_jax_nor_pytest_nor_torch(tmp_path):
    write(tmp_path, TRUST, RIGHT[TRUST])
    code = (
        "import runpy, sys\n"
        "for name in ('jax', 'flax', 'torch', 'pytest'): sys.modules[name] = None\n"
        f"sys.argv = ['golden_evals', {str(tmp_path)!r}]\n"
        "runpy.run_module('tests.golden_evals', run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("1 passed, 0 failed\n")


@pytest.mark.skipif(not (DATA / XSTEST).is_file(), reason=f"{DATA} is not there")
def test_all_recorded_answers_are_graded_as_they_were(capsys):
    assert golden_evals.main([str(DATA)]) == 0
    out = capsys.readouterr().out
    passed = int(out.splitlines()[-1].split()[0])
    assert passed >= 383 + 180 + 660 + 500
    assert out.endswith(" passed, 0 failed\n")
