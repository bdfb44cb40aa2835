"""Entry point: flags in, a run out. `python -m stair_jax.main --config=configs/tiny.py`."""

import logging
import sys

import jax
from absl import app, flags
from ml_collections import config_flags

from stair_jax import interrupt, mesh, pipeline, redaction, startup, xla_flags
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
    for noisy in ("absl", "httpx2", "jax", "orbax"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    for handler in logging.getLogger().handlers:
        handler.addFilter(redaction.hide_in_record)
    interrupt.install()
    config = _CONFIG.value
    mesh.show_cpus(config.mesh.shape, config.mesh.replicas)
    startup.claim_memory()
    kept = bool(config.compile_cache or startup.kept_in())
    xla_flags.add(deterministic=config.deterministic, kept=kept)
    try:
        startup.keep_programs(config.compile_cache)
        pipeline.run(config, config_flags.get_override_values(flags.FLAGS["config"]))
    except (ValueError, OSError, NonFiniteError) as error:
        sys.exit(redaction.hide(f"error: {error}"))
    except interrupt.Stopped as stopped:
        print(f"{stopped}; the same command goes on from here", file=sys.stderr)
        sys.exit(stopped.status)


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    jax.config.config_with_absl()
    app.run(main)
