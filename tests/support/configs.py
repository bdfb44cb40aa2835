"""The files of `configs/`, loaded as flags load them."""

import importlib.util
import pathlib

FILES = sorted((pathlib.Path(__file__).parents[2] / "configs").glob("*.py"))


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def keys(d, prefix=""):
    for name, value in d.items():
        if hasattr(value, "items"):
            yield from keys(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def tiny(arg=None, /, **changes):
    c = load(next(p for p in FILES if p.stem == "tiny")).get_config(arg)
    for key, value in changes.items():
        section = c
        *parents, leaf = key.split("__")
        for name in parents:
            section = section[name]
        section[leaf] = value
    return c
