"""What a run will need of memory and disk, said before its first stage, from settings alone."""

import dataclasses
import logging
import os
import pathlib
import shutil
from collections.abc import Iterable, Mapping

import jax

from stair_jax.config import Config
from stair_jax.config.schema import TrainConfig
from stair_jax.config.stages import DPO, EVALUATE, EXPORT, PRM, SEARCH, SFT, Stage
from stair_jax.config.strategies import parse_all
from stair_jax.config.words import split_csv
from stair_jax.engine import prefill
from stair_jax.hf import reward_model
from stair_jax.model import footprint, lora
from stair_jax.model.footprint import ITEM, Split
from stair_jax.model.spec import Spec
from stair_jax.run import attack_models, models
from stair_jax.run import rows as rows_lib
from stair_jax.run.search_sizes import tree_bytes
from stair_jax.run.workdir import Run, engine_config, size_of, train_config
from stair_jax.train.throughput import adapter_parameters

log = logging.getLogger(__name__)

Needs = Mapping[str, int | float]  # bytes by what they hold

PROCESS_BYTES = 0.7e9  # of the host: Python, JAX, XLA's compiler, the tokenizer
_SIDES = {SFT.name: 1, DPO.name: 2, PRM.name: 2}  # rows of an example, by trainer
_KNOBS = {
    "train": "train.micro_tokens, train.head_chunk, train.remat, train.lora_rank, mesh.shape",
    "engine": "engine.slots, engine.max_context, engine.pool_bytes, mesh.replicas, mesh.shape",
    "disk": "train.keep, train.lora_rank, data.round_prompts",
}


def tell(run: Run, stages: Iterable[Stage]) -> None:
    """Says what the stages need, what this machine has, and which settings change that.

    It warns where something does not fit; what is certain to fail, the stage itself refuses.
    """
    spec, wanted = models.spec_and_codec(run)[0], dict.fromkeys(stages)
    log.info("this run needs about, by shapes and settings alone:")
    has, place = _memory()
    short: list[tuple[str, float, str]] = []
    knobs: dict[str, None] = {}  # kinds of them, in order
    for stage in wanted:
        found = memory_of(run, stage, spec)
        if not found:
            continue
        total, kind = sum(found.values()), "engine" if "pool of keys" in found else "train"
        knobs[kind] = None
        log.info("  %s: %s of %s (%s)", stage.name, size_of(total), place, _parts(found))
        if has and total > has:
            short.append((stage.name, total, _KNOBS[kind]))
    disk, free = disk_of(run, wanted, spec), shutil.disk_usage(run.workdir).free
    if disk:
        knobs["disk"] = None
        log.info("  disk: %s (%s)", size_of(sum(disk.values())), _parts(disk))
    mesh = " x ".join(f"{n} {axis}" for axis, n in run.mesh.shape.items())
    count = f"{jax.device_count()} x {jax.devices()[0].device_kind}, of which it uses {mesh}"
    known = size_of(has) if has else "an unknown amount"
    log.info("this machine has %s of %s, %s free on disk; %s", known, place, size_of(free), count)
    if written_for := run.config.mesh.written_for:
        log.info("the configuration was written for %s", written_for)
    if knobs:
        named = dict.fromkeys(name for kind in knobs for name in _KNOBS[kind].split(", "))
        log.info("what changes it: %s", ", ".join(named))
    for name, total, help_by in short:
        said = "stage %s hardly fits: it needs about %s of %s, this machine has %s; change %s"
        log.warning(said, name, size_of(total), place, known, help_by)
    if sum(disk.values()) > free:
        needed, where = size_of(sum(disk.values())), run.workdir
        said = "%s has %s free, the run writes about %s; change %s"
        log.warning(said, where, size_of(free), needed, _KNOBS["disk"])


def memory_of(run: Run, stage: Stage, spec: Spec) -> Needs:
    """Returns the bytes that a stage takes at its peak: of the host on a CPU, else of a device."""
    parts: list[Needs] = [_training(run, trainer, spec) for trainer in stage.trainers]
    if stage.decodes(run.config):
        parts.append(_serving(run, stage, spec))
    if not parts:
        return {}
    most = max(parts, key=lambda part: sum(part.values()))
    return {**most, "the process": PROCESS_BYTES} if _on_cpu() else most


def _training(run: Run, trainer: str, spec: Spec) -> Needs:
    c, config = run.config, train_config(run.config, trainer)
    split, scores = Split(**run.mesh.shape), trainer == PRM.name
    if scores:
        spec = dataclasses.replace(spec, L=spec.L + c.prm.more_layers)
    copy = spec.parameters * ITEM[config.compute_dtype]
    reads = trainer == DPO.name and c.dpo.reference == "on_the_fly"
    reads |= scores and c.prm.loss == "implicit" and c.prm.reference == "start"
    new_rows = len(models.new_rows(run))
    by_value = scores and c.prm.loss in ("bce", "mse")  # rows of one response
    found = footprint.training(
        spec,
        config,
        trained=trained_of(spec, config, new_rows),
        new_rows=new_rows,
        frozen=float(copy if config.lora_rank or reads else 0),
        sides=1 if config.batching != "bucket" or by_value else _SIDES[trainer],
        head=not scores or c.prm.loss == "implicit",
        split=split,
        fused=jax.default_backend() == "gpu" and config.compute_dtype == "bfloat16",
    )
    together = run.mesh.size if _on_cpu() else 1  # all of a CPU's devices are one host
    return {name: size * together for name, size in found.items()}


def trained_of(spec: Spec, config: TrainConfig, new_rows: int) -> int:
    """Returns the parameters that are trained: all, or adapters with the rows of new tokens."""
    if not config.lora_rank:
        return spec.parameters
    rows = new_rows * spec.D * len(lora.tables_of(spec))
    return adapter_parameters(spec, config.lora_rank, split_csv(config.lora_targets)) + rows


def _serving(run: Run, stage: Stage, spec: Spec) -> Needs:
    """Returns what the engine takes, and a reward model beside it."""
    found = dict(_engine(run, spec))
    for name, other in _beside(run, stage, spec).items():
        weights = other.parameters * ITEM[engine_config(run.config).dtype]
        found[name] = weights + _pool(run, other)
    return found


def _beside(run: Run, stage: Stage, spec: Spec) -> dict[str, Spec]:
    c = run.config
    if stage is SEARCH:
        found = {}
        if c.judge.helpfulness == "reward_model":
            found["the judging reward model"] = reward_model.read_spec(c.judge.reward_model)
        if c.search.value != "rollout" and c.search.value_model:
            found["the value model"] = reward_model.read_spec(c.search.value_model)
        return found
    if stage is not EVALUATE:
        return {}
    found = {}
    if any(s.of.reads for s in parse_all(split_csv(c.evaluate.search))):
        found["the reward model"] = dataclasses.replace(spec, L=spec.L + c.prm.more_layers)
    # One that plays two roles has one engine.
    found |= {f"the engine of {name}": spec for name in attack_models.own_names(c)}
    return found


def _engine(run: Run, spec: Spec) -> Needs:
    places, config = models.engine_places(run), engine_config(run.config)
    found = footprint.engine(
        spec,
        config,
        pool=_pool(run, spec),
        programs=_programs(run) if _on_cpu() else 0,
        tensor=places[0].shape["tensor"],
    )
    together = sum(place.size for place in places) if _on_cpu() else 1
    return {name: size * together for name, size in found.items()}


def _pool(run: Run, spec: Spec) -> int:
    """Returns the bytes of a pool of keys, as far as the device has them."""
    config, has = engine_config(run.config), _memory()[0]
    free = None if _on_cpu() or not has else int(has - spec.parameters * ITEM[config.dtype])
    try:
        return prefill.page_count(spec, config, free) * prefill.page_bytes(spec, config)
    except ValueError:  # the engine says it better
        return config.max_context * footprint.keys_a_token(spec, config.dtype)


def _programs(run: Run) -> int:
    """Returns about how many programs an engine compiles; see `Device.compile`."""
    config, shapes = engine_config(run.config), prefill.shapes()
    context = -(-config.max_context // config.page_size)
    widths = {shapes.width_of(pages, context) for pages in range(1, context + 1)}
    extends = "self" in (run.config.judge.safety, run.config.judge.helpfulness)
    return len(shapes.blocks) * (1 + extends * len(widths)) + 2 + 2 * len(widths)


def disk_of(run: Run, stages: Iterable[Stage], spec: Spec) -> Needs:
    """Returns the bytes that the stages write."""
    c, found = run.config, dict.fromkeys(("checkpoints", "trees", "export"), 0.0)
    new_rows = len(models.new_rows(run))
    for stage in stages:
        trained = [(result.name, times) for result in stage.results if (times := result.models(c))]
        for result, times in trained:
            found["checkpoints"] += times * checkpoint_bytes(c, result, spec, new_rows)
        if stage is SEARCH:
            prompts = sum(rows_lib.count(c, number) for number in range(1, c.rounds + 1))
            found["trees"] += float(prompts * tree_bytes(c))
        if stage is EXPORT:
            dtype = c.export.dtype if c.export.dtype != "auto" else "float32"
            found["export"] += float(spec.parameters * ITEM[dtype])
    return {name: size for name, size in found.items() if size}


def checkpoint_bytes(c: Config, result: str, spec: Spec, new_rows: int) -> float:
    """Returns the bytes of the checkpoints of one training run, at most.

    Args:
      c: of the run.
      result: that the trainer makes.
      spec: of the model.
      new_rows: tokens that the checkpoint did not have.
    """
    config = train_config(c, result)
    kept = config.keep + 1 + (config.result == "best")  # one more until the oldest goes
    return 12.0 * trained_of(spec, config, new_rows) * kept


def _memory() -> tuple[int | float | None, str]:
    """Returns the bytes that there are, and of what: this host's, or a device's."""
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        return host_bytes(), "the host's memory"
    stats = device.memory_stats() or {}
    return stats.get("bytes_limit"), "each device's memory"


def host_bytes(group: pathlib.Path = pathlib.Path("/sys/fs/cgroup/memory.max")) -> float:
    """Returns the host's memory, or what this process' group may have of it."""
    whole = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    text = group.read_text().strip() if group.is_file() else "max"
    return min(whole, float(text)) if text.isdigit() else whole


def _on_cpu() -> bool:
    return jax.default_backend() == "cpu"


def _parts(found: Needs) -> str:
    large = sorted(found.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {size / 1e9:.1f}" for name, size in large if size >= 0.05e9) or "-"
