"""GPU kernels, each beside its oracle; in a checkout their files lie in `kernels/` at the top."""

import pathlib

_checkout = pathlib.Path(__file__).parents[2]
if (_checkout / "pyproject.toml").is_file():  # a wheel carries the files right here instead
    __path__.append(str(_checkout / "kernels"))
