"""The run: which stages, in which order, what is done already."""

import dataclasses
import importlib
import itertools
import logging
import operator
import pathlib
import time
from collections.abc import Collection
from typing import Any

import jax

from stair_jax import jsonl, ops
from stair_jax.config import Config, with_values
from stair_jax.config.checks import validate
from stair_jax.config.stages import STAGES, Stage, stage_of
from stair_jax.config.words import split_csv
from stair_jax.evals.report import html
from stair_jax.log import progress
from stair_jax.log.metrics import Metrics
from stair_jax.run import benchmarks, inputs, known_models, needs, prepared
from stair_jax.run.lineage import Lineage, settings_of
from stair_jax.run.redo import Redo
from stair_jax.run.workdir import CHECKPOINT, Run, locked

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Item:
    """One piece of work: a stage, in a round where it belongs to one."""

    stage: Stage
    number: int | None = None  # of the round

    @property
    def artefact(self) -> str | None:
        """What the lineage calls its result; None where it has a result per model."""
        return self.stage.artefact(self.number) if self.stage.output else None

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.artefact or self.stage.name

    def call(self, function: str, run: Run) -> None:
        """Calls the stage's `run`, or its `look` if it has one."""
        module = importlib.import_module(f"stair_jax.stages.{self.stage.name}")
        if found := getattr(module, function, None):
            found(run) if self.number is None else found(run, self.number)


def items_of(config: Config) -> list[Item]:
    """Returns the work of a configuration, in order."""
    names = split_csv(config.stages)
    items = []
    for in_rounds, stages in itertools.groupby(STAGES, lambda stage: stage.in_rounds):
        wanted = [stage for stage in stages if stage.name in names]
        numbers = range(1, config.rounds + 1) if in_rounds else [None]
        items += [Item(stage, number) for number in numbers for stage in wanted]
    return items


def missing_for(run: Run, item: Item) -> str | None:
    """Returns what an item still waits for, in words; None where it can begin."""
    number, stage = item.number, item.stage
    if waits := prepared.waits_for(run, stage):
        return waits
    if number is not None and known_models.before_round(run, number) is None:
        if number == 1:
            return "a model to start from: run stage sft, or set config.model.checkpoint"
        return f"{known_models.of_round(number - 1).name}: run stage dpo of round {number - 1}"
    if above := stage.after:
        rounds = range(1, run.config.rounds + 1) if number is None else [number]
        names = [above.artefact(k) for k in rounds]
        if not any(map(run.lineage.finished, names)):
            return f"{names[0]}: run stage {above.name} first"
    if stage.start:
        there = [*known_models.stair_models(run), *known_models.baselines(run)]
        known = [model.name for model in there]
        if (start := operator.attrgetter(stage.start)(run.config)) and start not in known:
            return f"model {start!r} of config.{stage.start}, which is not one of {known}"
    return None


def run(config: Config, flags: Collection[str] = ()) -> None:
    """Runs what `config.stages` names and is not done yet, in the order of `STAGES`.

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
                inputs.look(this, [item.stage for item in items])
                for item in items:
                    item.call("look", this)
            dropping.carry_out()
            if left := [item for item in items if not _done(this, item)]:
                needs.tell(this, [item.stage for item in left])
            _run_items(this, items)
        dropping.close()
        _report(workdir)


def _report(workdir: pathlib.Path) -> None:
    """Writes the run's report; a run that is done is not lost over a page about it."""
    try:
        log.info("report: %s", html.write(workdir))
    except Exception as error:
        kind = type(error).__name__
        log.warning("no report, stair-jax report %s says more: %s: %s", workdir, kind, error)


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
                if missing.get(key) != value:  # said once, of the first that was made so
                    log.info("config.%s: %r, as the command that made %s had it", key, value, name)
                missing[key] = value
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
            label = f"stage {item.stage.name}{of_round}"
            if not worked or item.number is None:
                raise ValueError(f"config.stages: {label} needs {waits_for}")
            log.info("rounds end here: %s needs %s", label, waits_for)
            waiting = True
            continue
        start = time.perf_counter()
        log.info("%s ... (%d of %d)", item.name, number, len(items))
        with progress.line(item.name):
            item.call("run", run)
        log.info("%s: %.1f s", item.name, time.perf_counter() - start)
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
        if stage_of(entry["stage"]) in wanted:
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
        made = [
            name
            for name, entry in lineage.entries.items()
            if stage_of(entry["stage"]) == item.stage.name
        ]
        names = [item.artefact] if item.artefact else made or [item.name]
        for name in names:
            entry = lineage.entries.get(name)
            word = "left" if entry is None else "done" if entry["finished"] else "begun"
            when = "" if entry is None else entry.get("ended", f"since {entry['begun']}")
            lines.append(f"  {name:<18} {word:<6} {when}".rstrip())
    if config.redo:
        going = ", ".join(lineage.chosen(split_csv(config.redo)))
        lines.append(f"  config.redo={config.redo} would drop {going}")
    return "\n".join(lines)
