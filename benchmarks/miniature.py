"""The miniature's SFT model, its prompts, and trees grown with it over any engine."""

import contextlib
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks import growing, harness
from benchmarks.growing import Grown
from configs import tiny
from stair_jax import config as config_lib
from stair_jax import mesh, text
from stair_jax.config import Config
from stair_jax.config.schema import RewardConfig, SearchConfig
from stair_jax.engine.request import EngineLike
from stair_jax.engine.shared_engine import SharedEngine
from stair_jax.hf import exporter
from stair_jax.log.metrics import Metrics
from stair_jax.records import Prompt
from stair_jax.run import judges, models, rows, search_sizes
from stair_jax.run.known_models import SFT_MODEL
from stair_jax.run.lineage import Lineage
from stair_jax.run.models import Policy
from stair_jax.run.workdir import Run

MODEL = SFT_MODEL.artefact
# The paper's search; what is not named here is the miniature's: limits, context, judge.
PAPER: dict[str, Any] = {
    "iterations": 200,
    "num_children": 4,
    "c": 1.5,
    "max_depth": 7,
    "temperature": 1.2,
    "top_p": 0.9,
    "top_k": 50,
    "score": "ucb",
}


def train(workdir: pathlib.Path) -> None:
    """Runs stage sft of the miniature in `workdir`; does nothing where that is done.

    Raises:
      ValueError: where the run fails; its own last words are on stderr.
    """
    if Lineage(workdir / "lineage.json").finished(MODEL):
        return
    harness.say(f"training the miniature's SFT model into {workdir} (2 to 3 minutes, once) ...")
    command = [
        sys.executable,
        "-m",
        "stair_jax.main",
        "--config=configs/tiny.py",
        "--config.stages=sft",
        f"--config.workdir={workdir.absolute()}",
    ]
    # Large pages, as in launch/demo.sh: a CPU training step is a seventh faster.
    environment = os.environ | {"GLIBC_TUNABLES": harness.TUNABLES}
    root = pathlib.Path(__file__).parents[1]
    done = subprocess.run(command, cwd=root, env=environment, check=False)
    if done.returncode:
        raise ValueError(f"{workdir}: training ended with status {done.returncode}")


def open_run(workdir: pathlib.Path) -> Run:
    """Returns the run of a workdir that has the SFT model, with the settings of the benchmark.

    Seed and model are the run's own; search and engine are those of configs/tiny.py as it is now.
    JAX is told to show as many CPU devices as a run has; it must not have been used before.

    Raises:
      ValueError: where the workdir has no finished SFT model.
    """
    lineage = Lineage(workdir / "lineage.json")
    if not lineage.finished(MODEL):
        raise ValueError(f"--workdir: {workdir} has no finished {MODEL} model")
    saved = json.loads((workdir / "config.json").read_text(encoding="utf-8"))
    kept = config_lib.restore({name: saved[name] for name in ("seed", "model")})
    config = tiny.get_config()
    config.update(seed=kept.seed, model=kept.model, workdir=str(workdir))
    config.search.update(PAPER)
    mesh.show_cpus(config.mesh.shape, config.mesh.replicas)
    return Run(config, workdir, lineage, Metrics(workdir))


def export(policy: Policy, folder: pathlib.Path) -> float:
    """Writes a model as a Hugging Face folder; returns the largest difference of its logits."""
    exporter.save(
        folder,
        policy.spec,
        policy.params,
        policy.codec.tokenizer,
        end_ids=sorted(policy.codec.end_ids),
        dtype="float32",
        chat_template=text.TEMPLATES[policy.codec.template],
    )
    asked = [policy.codec.prompt_ids("what is 1 2 + 3 4 ?")]
    report = exporter.export_report(folder, policy.spec, policy.params, asked, dtype="float32")
    return report["max_abs_diff"]


def questions(config: Config) -> list[Prompt]:
    """Returns the prompts of round 1, those of a kind together."""
    every = rows.for_round(config, 1)
    return sorted(every, key=lambda p: (p.type, p.meta["kind"], p.meta["framing"], p.id))


def spread(prompts: Sequence[Any], count: int, turn: int, turns: int) -> list[Any]:
    """Returns `count` of the prompts at even distances, others at each of the `turns`.

    Raises:
      ValueError: where there are too few.
    """
    if count > len(prompts):
        raise ValueError(f"{count} prompts wanted, found {len(prompts)}")
    distance = len(prompts) / count
    return [prompts[int((i + (turn + 0.5) / turns) * distance)] for i in range(count)]


def repeated(prompts: Sequence[Prompt], count: int) -> list[Prompt]:
    """Returns `count` prompts: all in turn, under another id each time.

    The id is a part of every random key, so that trees on one prompt differ.
    """
    turns = (divmod(i, len(prompts)) for i in range(count))
    return [
        dataclasses.replace(prompts[i], id=f"{prompts[i].id}/{turn}") if turn else prompts[i]
        for turn, i in turns
    ]


def in_flight(run: Run, trees: int) -> int:
    """Returns how many trees stage search would have in flight at most."""
    wanted = run.config.search.trees_in_flight
    places = len(models.engine_places(run))
    return wanted or min(trees, search_sizes.TREES_A_SLOT * run.config.engine.slots * places)


def grow(
    prompts: Sequence[Prompt], engine: EngineLike, policy: Policy, run: Run, *, in_flight: int
) -> Grown:
    """Grows a tree on every prompt; raises as `growing.grow`."""
    own, board = SearchConfig.of(run.config.search), SharedEngine(engine)
    with contextlib.closing(judges.judge_of(run, board, policy.codec)) as judge:
        return growing.grow(
            prompts,
            board.client(),
            codec=policy.codec,
            judge=judge,
            config=dataclasses.replace(own, trees_in_flight=in_flight),
            reward=RewardConfig.of(run.config.reward),
            seed=run.config.seed,
        )
