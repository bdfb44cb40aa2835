"""Talk to a model of a run: `python -m stair_jax.chat WORKDIR [--model=NAME]`."""

import argparse
import json
import pathlib
import sys

from stair_jax import startup, text
from stair_jax.config import Config, restore
from stair_jax.engine.request import Request, Sampling
from stair_jax.io.metrics import Metrics
from stair_jax.stages import policies
from stair_jax.stages.lineage import Lineage
from stair_jax.stages.run import Run


def main() -> None:
    """Reads questions, a line each, until the end of the input; prints the whole responses."""
    parser = argparse.ArgumentParser(description="Talk to a model of a run.")
    parser.add_argument("workdir", type=pathlib.Path, help="of the run")
    parser.add_argument("--model", default="", help='"sft", "dpo-2", ...; the last one by default')
    parser.add_argument("--temperature", type=float, default=0.0, help="0 (default) is greedy")
    parser.add_argument("--max_tokens", type=int, default=0, help="of a response")
    options = parser.parse_args()
    try:
        _talk(options)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


def _talk(options: argparse.Namespace) -> None:
    startup.claim_memory()
    config = _config_of(options.workdir)
    startup.keep_programs(config.compile_cache)
    config.engine.update(slots=1, prefill_rows=1, pool_bytes=0)
    config.mesh.update(shape=(1, 1, 1), replicas=0)  # whatever machine the run was made for
    lineage = Lineage(options.workdir / "lineage.json")
    run = Run(config, options.workdir, lineage, Metrics(options.workdir))
    name = options.model or policies.names(run)[-1]
    policy = policies.load(run, name, for_engine=True)
    engine = policies.engine_for(run, policy)
    limit = options.max_tokens or config.evaluate.max_tokens
    print(f"{name} of {options.workdir}; a question a line, end with Ctrl-D", file=sys.stderr)
    for number, question in enumerate(map(str.strip, sys.stdin)):
        if not question:
            continue
        ids = policy.codec.prompt_ids(question)
        if len(ids) >= config.engine.max_context:
            print(
                f"that is {len(ids)} tokens, of {config.engine.max_context} that question and"
                " response have (config.engine.max_context); ask again",
                file=sys.stderr,
            )
            continue
        root = engine.root(ids)
        request = Request(
            id=number, prefix=root, key=("chat", config.seed, number), stop="end",
            max_tokens=limit, sampling=Sampling(temperature=options.temperature),
        )  # fmt: skip
        (result,) = engine.generate([request])
        response = policy.codec.decode(result.ids)
        print(response.replace(text.STEP_END, f"{text.STEP_END}\n"), flush=True)
        engine.release(root)
        engine.release(result.prefix)


def _config_of(workdir: pathlib.Path) -> Config:
    """Returns the configuration of a run; ValueError where there is none of this version."""
    path = workdir / "config.json"
    if not path.is_file():
        raise ValueError(f"{workdir}: no config.json, expected the workdir of a run")
    try:
        return restore(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path}: no configuration of this version: {(str(error).splitlines() or [''])[0]}"
        ) from None


if __name__ == "__main__":
    main()
