"""Entry point: flags in, a run out. `python -m stair_jax.main --config=configs/tiny.py`."""

import logging
import os
import signal
import sys

import jax
from absl import app, flags
from ml_collections import config_flags

from stair_jax import mesh, pipeline
from stair_jax.train.loop import NonFiniteError

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Run configuration, a file of configs/.", lock_config=True
)


def main(argv: list[str]) -> None:
    """Runs the stages that the configuration names."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {argv[1:]}")
    logging.basicConfig(  # in place of absl's handler
        format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=logging.INFO, force=True
    )
    for noisy in ("absl", "orbax", "jax"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    signal.signal(signal.SIGINT, _stop)
    config = _CONFIG.value
    mesh.show_cpus(config.mesh.shape, config.mesh.replicas)
    try:
        pipeline.run(config)
    except (ValueError, OSError, NonFiniteError) as error:
        sys.exit(f"error: {error}")


def _stop(*_: object) -> None:
    """Ends the process at once: what is on disk is whole at any moment.

    An exception would be lost where it falls into a callback of XLA or of Python's collector, and
    XLA's threads, still at work, crash an orderly exit.
    """
    print("\nstopped; the same command goes on from here", file=sys.stderr, flush=True)
    os._exit(130)


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    jax.config.config_with_absl()
    app.run(main)
