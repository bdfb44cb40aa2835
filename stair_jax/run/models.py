"""Weights and codecs of the models of a run, and the engines that decode with them."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any

import flax.traverse_util
import jax

from stair_jax import mesh as mesh_lib
from stair_jax import text
from stair_jax.config.schema import TrainConfig
from stair_jax.config.sources import is_world
from stair_jax.engine import placing
from stair_jax.engine.device import joins
from stair_jax.engine.engine import Engine
from stair_jax.engine.placing import Later
from stair_jax.engine.replicas import Replicas
from stair_jax.hf import importer, metadata, tags
from stair_jax.hf import names as names_lib
from stair_jax.model import lora, reward, transformer
from stair_jax.model.reward import Readout
from stair_jax.model.spec import Spec
from stair_jax.run import known_models, shapes, worlds
from stair_jax.run.hashes import digest_of
from stair_jax.run.known_models import REWARD_MODEL, Model
from stair_jax.run.workdir import Run, engine_config, train_config
from stair_jax.train import checkpoint


@dataclasses.dataclass(frozen=True)
class Policy:
    """A model with its weights, and the codec that it is spoken to with."""

    model: Model
    spec: Spec
    params: Any  # float32, on the run's mesh; or leaves that are read when their turn comes
    codec: text.Codec


@dataclasses.dataclass(frozen=True)
class RewardPolicy:
    """A reward model with its weights, how its scores are read, and its codec.

    An implicit one is a policy; its `reference`, where it has one, the model that it started from,
    and its scores are `beta` times what it says more than that.
    """

    spec: Spec
    params: Any  # as a policy's
    readout: Readout
    codec: text.Codec
    reference: Model | None = None
    beta: float = 0.0


def load(run: Run, model: Model, *, for_engine: bool = False) -> Policy:
    """Returns a model of this run that exists, with its weights.

    Args:
      for_engine: whether the weights are for `engine_for` alone: each is then read from the disk
        when it is placed, in the engine's dtype, so that they lie on the devices once.
    """
    if for_engine:
        spec, codec = spec_and_codec(run)
        return Policy(model, spec, _later(run, model, engine_config(run.config).dtype), codec)
    if not model.artefact:
        return _base(run)
    spec, codec = spec_and_codec(run)
    if found := adapters_of(run, model):
        merge = jax.jit(functools.partial(lora.merge, **_merging(run, found.config)))
        return Policy(model, spec, merge(load(run, found.parent).params, found.factors), codec)
    like = shapes.weights(spec, run.mesh)
    folder, step = _trained(run, model.artefact)
    return Policy(model, spec, checkpoint.load_params(folder, like, step), codec)


def reward_model(run: Run, *, for_engine: bool = False) -> RewardPolicy:
    """Returns the reward model that stage prm has trained.

    Args:
      for_engine: see `load`.

    Raises:
      ValueError: where there is none.
    """
    known_models.need_reward_model(run)
    name = REWARD_MODEL.artefact
    (spec, codec), entry = spec_and_codec(run), run.lineage.entries[name]
    (folder, step), readout = _trained(run, name), Readout.from_json(entry["readout"])
    made = run.made_with(name)
    spec = dataclasses.replace(spec, L=spec.L + made.prm.more_layers)
    dtype = engine_config(run.config).dtype

    def read(like: Any) -> Any:
        if for_engine:
            return _leaves_later(folder, like, step, dtype)
        return checkpoint.load_params(folder, like, step)

    if readout.loss == "implicit":
        params = read(shapes.weights(spec, run.mesh))
        given = made.prm.reference == "start"
        reference = known_models.of_name(run, entry["start"]) if given else None
        return RewardPolicy(spec, params, readout, codec, reference, made.prm.beta)
    spec = reward.scalar(spec)
    axes, draw = reward.logical_axes(spec), functools.partial(reward.init, spec)
    if (below := entry.get("adapters_of")) is None:
        return RewardPolicy(spec, read(shapes.abstract(draw, axes, run.mesh)), readout, codec)
    parent = known_models.of_name(run, below)
    _refuse_other_rows(run, name)
    config = train_config(made, name)
    adapters, its_axes = _adapters(run, spec, config)
    axes = reward.adapted(axes, its_axes)
    like = shapes.abstract(lambda key: reward.adapted(draw(key), adapters(key)), axes, run.mesh)
    trained = checkpoint.load_params(folder, like, step)
    if for_engine:
        base = reward.body(_later(run, parent, "float32"))
        body = _merged_later(base, trained, **_merging(run, config))
        return RewardPolicy(spec, body | {"score": trained["score"]}, readout, codec)
    merge = jax.jit(functools.partial(reward.merge, **_merging(run, config)))
    return RewardPolicy(spec, merge(load(run, parent).params, trained), readout, codec)


def deepened(run: Run, policy: Policy, more_layers: int) -> Policy:
    """Returns a policy with layers on top that change nothing until they are trained."""
    if not more_layers:
        return policy
    spec = dataclasses.replace(policy.spec, L=policy.spec.L + more_layers)
    grow = functools.partial(reward.deepened, spec=spec, key=jax.random.key(run.config.seed))
    grown = jax.jit(grow, out_shardings=_places(spec, run.mesh))(policy.params)
    return dataclasses.replace(policy, spec=spec, params=grown)


@dataclasses.dataclass(frozen=True)
class Adapters:
    """What was trained of a model, over the model that lay frozen beneath."""

    parent: Model
    spec: Spec
    factors: lora.Factors
    config: TrainConfig
    new_rows: lora.Rows  # tokens whose rows were trained as well


def adapters_of(run: Run, model: Model) -> Adapters | None:
    """Returns the adapters that a finished model of the run consists of; None where it has none."""
    artefact = model.artefact
    entry = run.lineage.entries.get(artefact, {})
    if (below := entry.get("adapters_of")) is None:
        return None
    _refuse_other_rows(run, artefact)
    made, parent = run.made_with(artefact), known_models.of_name(run, below)
    spec, config = spec_and_codec(run)[0], train_config(made, entry["stage"])
    like = shapes.abstract(*_adapters(run, spec, config), run.mesh)
    folder, step = _trained(run, artefact)
    factors = checkpoint.load_params(folder, like, step)
    return Adapters(parent, spec, factors, config, new_rows(run))


def _refuse_other_rows(run: Run, artefact: str) -> None:
    """Refuses adapters of an earlier version, which left the rows of new tags as they started."""
    trained, rows = run.lineage.entries[artefact].get("new_rows", []), list(new_rows(run))
    if trained != rows:
        raise ValueError(
            f"{artefact}: its adapters were trained with the rows of tokens {trained}, expected"
            f" those of the new tags, {rows}: an earlier version made them;"
            f" {run.lineage.way_out(artefact)}"
        )


def fresh_adapters(run: Run, policy: Policy, config: TrainConfig) -> Any:
    """Returns fresh adapters on the run's mesh, as the trainer's configuration wants them.

    Beside them are the rows of new tags, as the policy has them.
    """
    draw, axes = _adapters(run, policy.spec, config)
    places = jax.tree.map(lambda x: x.sharding, shapes.abstract(draw, axes, run.mesh))
    made = jax.jit(draw, out_shardings=places)(jax.random.key(run.config.seed))
    if rows := new_rows(run):
        take = functools.partial(lora.rows_of, new_rows=rows)
        made[lora.ROWS] = jax.jit(take, out_shardings=places[lora.ROWS])(policy.params)
    return made


def digest(run: Run, model: Model) -> str:
    """Returns the hash of a model's weights, or for the base of what they come from."""
    if model.artefact:
        return run.lineage.entries[model.artefact]["hash"]
    grown = f" {tags.START}" if new_rows(run) else ""
    return digest_of(f"{run.origin.model} seed {run.origin.seed} {run.checkpoint}{grown}")


def engine_for(run: Run, policy: Policy) -> Engine | Replicas:
    """Returns an engine that decodes with a model, or replicas of it.

    The policy's weights are given away, weight by weight: it has none afterwards.
    """
    what: Any = {
        "config": engine_config(run.config),
        "stops": policy.codec.stops,
        "vocab": policy.codec.size,
    }
    places, config = engine_places(run), what["config"]
    placed = placing.place(
        policy.spec,
        policy.params,
        places,
        dtype=config.dtype,
        joined=joins(config),
        give_away=True,
    )
    if len(places) == 1:
        return Engine(policy.spec, placed[0], **what, mesh=places[0])
    return Replicas(policy.spec, placed, **what, meshes=places)


def engine_places(run: Run) -> list[jax.sharding.Mesh]:
    """Returns the meshes of the engine's replicas."""
    return mesh_lib.replicas(run.mesh, run.config.mesh.replicas)


def spec_and_codec(run: Run) -> tuple[Spec, text.Codec]:
    """Returns the sizes and the codec that all models of the run share, without any weights."""
    spec, tokenizer, _, ends = _tagged(run)
    c = run.origin.model
    template = c.template or text.template_for(tokenizer, spec.family)
    return spec, text.Codec(tokenizer, template, c.system, ends)


def new_rows(run: Run) -> lora.Rows:
    """Returns the ids of the tags that the run's checkpoint did not have."""
    return _tagged(run)[2]


def _tagged(run: Run) -> tuple[Spec, Any, lora.Rows, Any]:
    """Returns sizes and tokenizer with STAIR's tags, the ids of those that are new, and the ends
    that the checkpoint names.
    """
    origin = run.origin
    if origin.model.checkpoint:
        spec, tokenizer = metadata.load_spec_and_tokenizer(origin.model.checkpoint)
        ends = metadata.ends_of(origin.model.checkpoint, spec)
        spec, rows = tags.tag(tokenizer, spec)
        return spec, tokenizer, tuple(rows), ends
    tokenizer = worlds.of_model(origin).tokenizer(is_world(origin.judge.templates))
    return Spec.plain(len(tokenizer), **origin.model.size.to_dict()), tokenizer, (), ()


def _base(run: Run) -> Policy:
    """Returns the model that the run starts from: a checkpoint's, or random weights."""
    spec, codec = spec_and_codec(run)
    if run.origin.model.checkpoint:
        params = importer.read_all(_checkpoint_readers(run, "float32"))
    else:
        draw = jax.jit(
            functools.partial(transformer.init, spec), out_shardings=_places(spec, run.mesh)
        )
        params = draw(jax.random.key(run.origin.seed))
    return Policy(known_models.base(run), spec, params, codec)


def _checkpoint_readers(run: Run, dtype: str) -> dict[str, Callable[[], jax.Array]]:
    """Returns by its path what reads each weight of the run's checkpoint, tags and all.

    A table that grows is read in float32, whatever `dtype` says: new rows follow others' mean.
    """
    (spec, _), path = spec_and_codec(run), run.origin.model.checkpoint
    plain, tokenizer = metadata.load_spec_and_tokenizer(path)
    _, growths = tags.growths_of(tokenizer, plain, seed=run.origin.seed)
    places, grown = _places(plain, run.mesh), _places(spec, run.mesh)
    readers = importer.readers_of(path, places, dtype)[1]
    exact = importer.readers_of(path, places)[1] if growths else {}
    for name, grow in growths.items():
        readers[name] = functools.partial(_grown, exact[name], grow, grown[name])
    return readers


def _grown(read: Callable[[], jax.Array], grow: Callable[..., jax.Array], place: Any) -> jax.Array:
    return grow(read(), place=place)


def _later(run: Run, model: Model, dtype: str) -> Any:
    """Returns a model's weights, each to be read when its turn comes; in `dtype` where they can.

    A model without a checkpoint is drawn whole, and adapters are merged in float32.
    """
    spec, _ = spec_and_codec(run)
    if not model.artefact:
        if not run.origin.model.checkpoint:
            return _base(run).params
        like = names_lib.flat(shapes.weights(spec, run.mesh))
        flat = {
            path: Later(like[path].shape, dtype, read)
            for path, read in _checkpoint_readers(run, dtype).items()
        }
        return flax.traverse_util.unflatten_dict(flat, sep="/")
    if found := adapters_of(run, model):
        base = _later(run, found.parent, "float32")
        return _merged_later(base, found.factors, **_merging(run, found.config))
    like = shapes.weights(spec, run.mesh)
    folder, step = _trained(run, model.artefact)
    return _leaves_later(folder, like, step, dtype)


def _trained(run: Run, artefact: str) -> tuple[pathlib.Path, int]:
    """Returns where the checkpoints of a finished model lie, and the step that counts."""
    return run.workdir / artefact / "checkpoints", run.lineage.entries[artefact]["step"]


def _leaves_later(folder: pathlib.Path, like: Any, step: int, dtype: str) -> Any:
    """Returns a tree of `Later` that reads the leaves of a checkpoint; a score stays float32."""

    def later(path: Any, x: jax.ShapeDtypeStruct) -> Later:
        keys = [str(part.key) for part in path]
        own = "float32" if keys == [placing.SCORE] else dtype
        leaf = jax.ShapeDtypeStruct(x.shape, own, sharding=x.sharding)
        read = functools.partial(checkpoint.load_leaf, folder, keys, leaf, step)
        return Later(x.shape, own, read)

    return jax.tree_util.tree_map_with_path(later, like)


def _merging(run: Run, config: TrainConfig) -> dict[str, Any]:
    """Returns what `lora.merge` must know of a training run."""
    return {"scale": lora.scale_of(config), "new_rows": new_rows(run)}


def _merged_later(base: Any, factors: lora.Factors, scale: float, new_rows: lora.Rows) -> Any:
    """Returns the weights of `lora.merge`, each merged when its turn comes."""
    tables, layers = {}, dict(base["layers"])
    for name, rows in factors.get(lora.ROWS, {}).items():
        below = base[name]
        put = functools.partial(_with_rows, below, rows, new_rows)
        tables[name] = Later(below.shape, below.dtype, put)
    for target, factor in factors["layers"].items():
        weight = lora.TARGETS[target].weight
        below = base["layers"][weight]
        merge = functools.partial(_merged, below, factor, weight=weight, target=target, scale=scale)
        layers[weight] = Later(below.shape, below.dtype, merge)
    return {**base, **tables, "layers": layers}


def _with_rows(below: Any, rows: jax.Array, new_rows: lora.Rows) -> jax.Array:
    put = jax.jit(lora.set_rows, static_argnames="new_rows")
    return put(_made(below), rows, new_rows=new_rows)


def _merged(below: Any, factor: Any, *, weight: str, target: str, scale: float) -> jax.Array:
    merge = jax.jit(functools.partial(lora.merge, scale=scale))
    of = {"layers": {weight: _made(below)}}
    return merge(of, {"layers": {target: factor}})["layers"][weight]


def _made(weight: Any) -> jax.Array:
    return weight.make() if isinstance(weight, Later) else weight


def _places(spec: Spec, mesh: jax.sharding.Mesh) -> Any:
    like = shapes.weights(spec, mesh)
    return jax.tree.map(lambda x: x.sharding, like)


def _adapters(run: Run, spec: Spec, config: TrainConfig) -> tuple[shapes.Draw, Any]:
    return shapes.drawing_adapters(spec, config, len(new_rows(run)))
