"""The run: which stages, in which order, what is done already."""

import dataclasses
import importlib
import logging
import pathlib
import time
from collections.abc import Collection
from typing import Any

import jax

from stair_jax import jsonl, ops
from stair_jax.config import Config, with_values
from stair_jax.config.checks import validate
from stair_jax.config.words import split_csv
from stair_jax.log import progress
from stair_jax.log.metrics import Metrics
from stair_jax.run import benchmarks, inputs, models, needs
from stair_jax.run.lineage import Lineage, settings_of
from stair_jax.run.redo import Redo
from stair_jax.run.workdir import CHECKPOINT, Run, locked

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Item:
    """One piece of work: a stage, in a round where it belongs to one."""

    stage: str
    number: int | None = None  # of the round

    @property
    def artefact(self) -> str | None:
        """What the lineage calls its result; None where it has a result per model."""
        names = {"sft": "sft", "search": "trees", "pairs": "pairs", "dpo": "dpo", "prm": "prm"}
        if self.number is None:
            return names.get(self.stage)
        return f"round-{self.number}/{names[self.stage]}"


def items_of(config: Config) -> list[Item]:
    """Returns the work of a configuration, in order."""
    wanted = split_csv(config.stages)
    rounds = [s for s in ("search", "pairs", "dpo") if s in wanted]
    items = [Item("sft")] if "sft" in wanted else []
    items += [Item(stage, k) for k in range(1, config.rounds + 1) for stage in rounds]
    last = ("baselines", "prm", "evaluate", "export")
    return items + [Item(stage) for stage in last if stage in wanted]


def missing_for(run: Run, item: Item) -> str | None:
    """Returns what an item still waits for, in words; None where it can begin."""
    if item.number is None:
        return _missing_for_prm(run) if item.stage == "prm" else None
    if models.before_round(run, item.number) is None:
        if item.number == 1:
            return "a model to start from: run stage sft, or set config.model.checkpoint"
        return f"dpo-{item.number - 1}: run stage dpo of round {item.number - 1}"
    before = {"pairs": "search", "dpo": "pairs"}.get(item.stage)
    if before and not run.lineage.finished(str(Item(before, item.number).artefact)):
        return f"{Item(before, item.number).artefact}: run stage {before} first"
    return None


def _missing_for_prm(run: Run) -> str | None:
    if not models.searched_rounds(run):
        return "round-1/trees: run stage search first"
    known = models.names(run) + models.baselines(run)
    if (start := models.start_of_prm(run)) not in known:
        return f"model {start!r} of config.prm.model, which is not one of {known}"
    return None


def run(config: Config, flags: Collection[str] = ()) -> None:
    """Runs what `config.stages` names and is not done yet, in the order of `config.STAGES`.

    Args:
      config: of the run.
      flags: dotted keys that the command line set. Those of an earlier command need not be
        repeated: what they made is there.

    Raises:
      ValueError: for settings that cannot work, or that would mix results of two configurations.
    """
    validate(config)
    benchmarks.check(config)
    workdir = pathlib.Path(config.workdir)
    if config.status:
        print(status(config, Lineage(workdir / "lineage.json")))
        return
    devices = jax.devices()
    log.info("jax %s: %d x %s", jax.__version__, len(devices), devices[0].device_kind)
    with locked(workdir):
        lineage = Lineage(workdir / "lineage.json")
        dropping = Redo(workdir, lineage, split_csv(config.redo))
        config = _with_flags_of_before(config, lineage, flags)
        watched = Metrics(
            workdir,
            trackers=split_csv(config.trackers),
            project=config.project,
            settings=config.to_dict(),
        )
        with watched as metrics:
            this = Run(config, workdir, lineage, metrics, frozenset(flags))
            _check_settings(this)
            ops.keep_plans(workdir / "kernel_plans.json")
            jsonl.write_text(workdir / "config.json", config.to_json(indent=1) + "\n")
            items = items_of(config)
            with progress.line("looking at what the run reads"):
                inputs.look(this, [(item.stage, item.number) for item in items])
            dropping.carry_out()
            if left := [item for item in items if not _done(this, item)]:
                needs.tell(this, [item.stage for item in left])
            _run_items(this, items)
        dropping.close()


def _with_flags_of_before(config: Config, lineage: Lineage, flags: Collection[str]) -> Config:
    """Returns the configuration with the flags that made what is there and were not given now."""
    missing: dict[str, Any] = {}
    for name, entry in lineage.entries.items():
        if not lineage.binds(name):
            continue
        now = settings_of(config, entry["stage"])
        for key in entry.get("flags", ()):
            value = entry["settings"][key]
            if key not in flags and key in now and now[key] != value:
                missing[key] = value
                log.info("config.%s: %r, as the command that made %s had it", key, value, name)
    if not missing:
        return config
    changed = with_values(config, missing)
    validate(changed)
    benchmarks.check(changed)
    return changed


def _done(run: Run, item: Item) -> bool:
    return item.artefact is not None and run.lineage.finished(item.artefact)


def _run_items(run: Run, items: list[Item]) -> None:
    worked = waiting = False
    for number, item in enumerate(items, start=1):
        if _done(run, item):
            log.info("%s: done already", item.artefact)
            worked = True
            continue
        if item.number is not None and waiting:
            continue  # a later round; what is left can do without it
        if waits_for := missing_for(run, item):
            of_round = "" if item.number is None else f" of round {item.number}"
            label = f"stage {item.stage}{of_round}"
            if not worked or item.number is None:
                raise ValueError(f"config.stages: {label} needs {waits_for}")
            log.info("rounds end here: %s needs %s", label, waits_for)
            waiting = True
            continue
        start, name = time.perf_counter(), item.artefact or item.stage
        log.info("%s ... (%d of %d)", name, number, len(items))
        module = importlib.import_module(f"stair_jax.stages.{item.stage}")
        with progress.line(name):
            module.run(run) if item.number is None else module.run(run, item.number)
        log.info("%s: %.1f s", name, time.perf_counter() - start)
        worked = True


def _check_settings(run: Run) -> None:
    """Refuses settings other than those that artefacts were made with.

    All of them for the stages that are wanted. For every stage the flags of this command, which
    would be ignored, and the model's, because whatever is made next comes from the models that are
    there, or is told apart by them. What is done is held against the weights that it began with.
    """
    wanted = split_csv(run.config.stages)
    for name, entry in run.lineage.entries.items():
        if not run.lineage.binds(name):
            continue
        keys = run.flags
        if entry["stage"].partition(".")[0] in wanted:
            keys = None  # all
        settings = settings_of(run.config, entry["stage"])
        run.lineage.check(
            name,
            settings,
            only=lambda key, keys=keys: keys is None or key in keys or key.startswith("model."),
        )
        run.lineage.check_inputs(name, {CHECKPOINT: run.checkpoint})


def status(config: Config, lineage: Lineage) -> str:
    """Returns what is done and what is left, a line an item."""
    lines = [f"{config.workdir}:"]
    for item in items_of(config):
        names = (
            [item.artefact]
            if item.artefact
            else [
                name
                for name, entry in lineage.entries.items()
                if entry["stage"].partition(".")[0] == item.stage
            ]
            or [item.stage]
        )
        for name in names:
            entry = lineage.entries.get(str(name))
            word = "left" if entry is None else "done" if entry["finished"] else "begun"
            when = "" if entry is None else entry.get("ended", f"since {entry['begun']}")
            lines.append(f"  {name:<18} {word:<6} {when}".rstrip())
    if config.redo:
        going = ", ".join(lineage.chosen(split_csv(config.redo)))
        lines.append(f"  config.redo={config.redo} would drop {going}")
    return "\n".join(lines)
