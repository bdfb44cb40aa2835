"""The configuration: every knob, what it may be, and what is said where it is not.

Files in `configs/` say `from stair_jax import config` and use the names below. Those that need
ml-collections are taken from `defaults` when they are first used: the frozen dataclasses of
`schema` work where it is not installed.
"""

import importlib
from typing import TYPE_CHECKING

from stair_jax.config.words import BASELINES, EXPORTS, ROW_FILES, TRACKERS

__all__ = [
    "BASELINES",
    "EXPORTS",
    "ROW_FILES",
    "TRACKERS",
    "Config",
    "default",
    "parse_arg",
    "restore",
    "with_values",
]

if TYPE_CHECKING:
    from stair_jax.config.defaults import Config, default, parse_arg, restore, with_values
else:

    def __getattr__(name):
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module("stair_jax.config.defaults"), name)
