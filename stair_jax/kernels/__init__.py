"""GPU kernels, each beside its oracle; in a checkout their files lie in `kernels/` at the top."""

import pathlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a checker looks for them where they lie
    from kernels import paged_attention as paged_attention
    from kernels import plans as plans
    from kernels import top_k as top_k

_checkout = pathlib.Path(__file__).parents[2]
if (_checkout / "pyproject.toml").is_file():  # a wheel carries the files right here instead
    __path__.append(str(_checkout / "kernels"))
