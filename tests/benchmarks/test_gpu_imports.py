"""What `benchmarks.gpu` imports: no more than a plain GPU image has."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
ALLOWED = {"jax", "flax", "optax", "numpy", "einops", "jaxtyping"}
BLOCKED = ("ml_collections", "grain", "datasets", "torch", "transformers")
OURS = {"benchmarks", "stair_jax"}
MODULES = ("child", "engine", "kernels", "machine", "profile", "sizes", "training")


def file_of(module):
    """Returns the file of one of our modules; None where the name is not a module."""
    parts = module.split(".")
    if parts[:2] == ["stair_jax", "kernels"] and len(parts) == 3:
        parts = ["kernels", parts[2]]
    path = ROOT.joinpath(*parts)
    found = [file for file in (path / "__init__.py", path.with_suffix(".py")) if file.is_file()]
    return found[0] if found else None


def runs(tree):
    """Yields the nodes of a syntax tree, without what is there for type checkers alone."""
    yield tree
    if not (isinstance(tree, ast.If) and "TYPE_CHECKING" in ast.unparse(tree.test)):
        for node in ast.iter_child_nodes(tree):
            yield from runs(node)


def names_in(source):
    """Yields every dotted name that a source imports, also within functions."""
    for node in runs(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def graph(module):
    """Returns our modules that `module` comes to import, and the names of other packages."""
    ours, others, left = set(), set(), [module]
    while left:
        name = left.pop()
        parents = [".".join(name.split(".")[:i]) for i in range(1, name.count(".") + 2)]
        for one in parents:
            file = file_of(one)
            if one in ours or file is None:
                continue
            ours.add(one)
            for imported in names_in(file.read_text()):
                if imported.split(".")[0] in OURS:
                    left.append(imported)
                else:
                    others.add(imported.split(".")[0])
    return ours, others - set(sys.stdlib_module_names)


def test_every_import_that_runs_is_seen():
    source = """
if TYPE_CHECKING:
    import torch
if True:
    import rich.table
def f():
    from absl import app
"""
    assert [*names_in(source)] == ["rich.table", "absl", "absl.app"]


def test_the_graph_of_imports_is_followed():
    ours, others = graph("benchmarks.search_vs_transformers")
    assert {"stair_jax.hf.metadata", "stair_jax.run.models", "benchmarks.harness"} <= ours
    assert {"torch", "transformers", "safetensors", "jax"} <= others


@pytest.mark.parametrize("name", MODULES)
def test_a_bare_gpu_machine_has_what_a_step_imports(name):
    ours, others = graph(f"benchmarks.on_gpu.{name}")
    assert f"benchmarks.on_gpu.{name}" in ours
    assert others <= ALLOWED


def test_the_steps_reach_what_they_measure():
    ours = set().union(*(graph(f"benchmarks.on_gpu.{name}")[0] for name in MODULES))
    assert {"stair_jax.engine.engine", "stair_jax.kernels.paged_attention"} <= ours
    assert {"stair_jax.search.driver", "stair_jax.train.step", "stair_jax.kernels.top_k"} <= ours


def test_the_parent_imports_no_jax():
    """What holds no device leaves all of its memory to the steps."""
    code = "import sys, benchmarks.gpu; assert not {'jax', 'numpy', 'torch'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_all_of_it_imports_where_the_other_packages_are_missing():
    modules = ["benchmarks.gpu", *(f"benchmarks.on_gpu.{m}" for m in (*MODULES, "peers"))]
    code = f"""
import importlib, sys
for name in {BLOCKED}:
    sys.modules[name] = None
for name in {modules}:
    importlib.import_module(name)
import jax
assert not jax._src.xla_bridge.backends_are_initialized()  # a child that waits uses no device
from benchmarks.on_gpu import child, peers
try:
    peers.generate(child.Job(True, 1.0, "auto", 9.0, ".", {{}}))
except child.LeftOut as why:
    assert str(why) == "no torch"
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
