"""Settings of JAX before a run: its share of a GPU's memory, and where programs are kept."""

import logging
import os
import pathlib

import jax

log = logging.getLogger(__name__)

# Of a GPU's memory. JAX takes .75 by default, which leaves 16 GB of 80 to nobody; what is left
# here is for CUDA's own context, cuBLAS, cuDNN and NCCL.
MEMORY_SHARE = 0.90
_SHARES = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")
_LEAST_S = 1.0  # programs that compile faster are not kept


def claim_memory() -> None:
    """Has JAX take `MEMORY_SHARE` of each GPU, unless the environment names a share already.

    It must come before JAX starts its backend.
    """
    if not any(os.environ.get(name) for name in _SHARES):
        os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"] = str(MEMORY_SHARE)


def keep_programs(setting: str) -> pathlib.Path | None:
    """Has JAX keep compiled programs on disk and read them at the next start; returns where.

    A folder that JAX has been given already (`JAX_COMPILATION_CACHE_DIR`) stays. It starts JAX's
    backend.

    Args:
      setting: a folder; "" for none; "auto" for a folder of the user's cache
        ($XDG_CACHE_HOME/stair_jax, ~/.cache/stair_jax), but on CPUs none: they compile in seconds,
        and XLA's programs for one CPU may not run on another that shares the home.

    Raises:
      ValueError: where the folder cannot be made.
    """
    if given := kept_in():
        log.info("compiled programs: in %s, as JAX was told", given)
        return pathlib.Path(given)
    if not setting or (setting == "auto" and jax.default_backend() == "cpu"):
        return None
    folder = _user_cache() if setting == "auto" else pathlib.Path(setting).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"config.compile_cache: {folder} cannot be made ({error.strerror}), expected a folder,"
            " 'auto' or nothing"
        ) from error
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _LEAST_S)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    log.info("compiled programs: kept in %s", folder)
    return folder


def kept_in() -> str | None:
    """Returns the folder that JAX keeps compiled programs in; None for none."""
    return jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]


def _user_cache() -> pathlib.Path:
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(base) / "stair_jax"
