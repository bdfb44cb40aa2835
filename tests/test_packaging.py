import importlib.metadata
import pathlib
import re
import subprocess
import sys
import tomllib
import zipfile

import pytest
import transformers

import stair_jax.kernels

ROOT = pathlib.Path(__file__).parents[1]


def test_our_kernels_never_pass_for_the_hugging_face_package():
    installed = "kernels" in importlib.metadata.packages_distributions()
    assert transformers.utils.is_kernels_available() == installed
    code = "import transformers; print(transformers.utils.is_kernels_available())"
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert found.stdout.split()[-1] == str(installed)
    assert not (ROOT / "kernels" / "__init__.py").exists()


def test_kernels_of_a_checkout_lie_in_the_top_folder():
    assert str(ROOT / "kernels") in stair_jax.kernels.__path__


def test_the_workflow_runs_every_python_that_the_package_names():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = re.findall(r":: Python :: (3\.\d+)", " ".join(project["classifiers"]))
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    [matrix] = re.findall(r"python: \[(.*)\]", workflow)
    assert re.findall(r'"(3\.\d+)"', matrix) == named
    assert "run: .ci/run\n        env:\n          PYTHON: python${{ matrix.python }}" in workflow


@pytest.mark.slow
def test_a_wheel_holds_the_package_and_the_kernels(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", tmp_path, ROOT],
        check=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "stair_jax/main.py" in names
    assert "stair_jax/py.typed" in names
    assert "stair_jax/kernels/__init__.py" in names
    assert "stair_jax/kernels/README.md" in names
    assert "stair_jax/plan/targets/h100.txt" in names
    for name in ("index.html.jinja", "report.css", "report.js"):
        assert f"stair_jax/evals/report/parts/templates/{name}" in names
    assert not [name for name in names if name.startswith(("tests", "configs", "kernels"))]
