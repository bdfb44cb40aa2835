"""The configuration of a run, as an ml_collections.ConfigDict made of the schema. Floor 0."""

from collections.abc import Mapping
from typing import Any

import ml_collections
from ml_collections.config_dict import placeholder

from stair_jax.config.schema import KNOBS

Config = Any  # an ml_collections.ConfigDict; type checkers cannot see its fields


def default() -> Config:
    """Returns every knob; a file in `configs/` only changes values, it never adds keys."""
    c = ml_collections.ConfigDict()
    for key, knob in KNOBS.items():
        *sections, name = key.split(".")
        into: Any = c
        for section in sections:
            if section not in into:
                into[section] = ml_collections.ConfigDict()
            into = into[section]
        into[name] = placeholder(str) if knob.default is None else knob.default
    return c


def parse_arg(arg: str | None, **spec: bool | int | float | str) -> Config:
    """Parses the text after `:` in `--config=file.py:text` against `spec` (name=default).

    Raises:
      ValueError: for a name that `spec` lacks.
    """
    out = dict(spec)
    for item in filter(None, (arg or "").split(",")):
        name, _, value = item.partition("=")
        if name not in spec:
            raise ValueError(f"config argument {name!r} is not one of {sorted(spec)}")
        kind = type(spec[name])
        out[name] = value in ("", "True", "true") if kind is bool else kind(value)
    return ml_collections.ConfigDict(out)


def with_values(config: Config, values: Mapping[str, Any]) -> Config:
    """Returns a configuration with other values, given by dotted keys; lists become tuples.

    Keys that this version does not have are passed over.
    """
    changed = ml_collections.ConfigDict(config.to_dict())
    for key, value in values.items():
        *sections, name = key.split(".")
        into: Any = changed
        for section in sections:
            into = into.get(section, {})
        if name in into:
            into[name] = tuple(value) if isinstance(value, list) else value
    return changed


def restore(saved: dict[str, Any]) -> Config:
    """Returns the configuration that a run wrote to config.json, with tuples as tuples."""
    config = default()

    def take(into: Config, source: dict[str, Any]) -> None:
        for key, value in source.items():
            if isinstance(into[key], ml_collections.ConfigDict):
                take(into[key], value)
            else:
                into[key] = tuple(value) if isinstance(into[key], tuple) else value

    take(config, saved)
    return config
