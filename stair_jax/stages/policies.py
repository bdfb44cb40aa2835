"""The models of a run, by name: "base", "sft", "dpo-1", ... and where their weights come from."""

import dataclasses
import functools
import pathlib
from typing import Any

import jax

from stair_jax import mesh as mesh_lib
from stair_jax import text
from stair_jax.engine.engine import Engine
from stair_jax.engine.replicas import Replicas
from stair_jax.io import checkpoint, hf, tags
from stair_jax.miniature import tokenizer as miniature_tokenizer
from stair_jax.model import transformer
from stair_jax.model.spec import Spec
from stair_jax.stages.run import Run, engine_config


@dataclasses.dataclass(frozen=True)
class Policy:
    """A model with its weights, and the codec that it is spoken to with."""

    name: str
    spec: Spec
    params: Any  # float32, on the run's mesh
    codec: text.Codec


def names(run: Run) -> list[str]:
    """Returns the models that exist, in the order in which they were made."""
    rounds = range(1, run.config.rounds + 1)
    made = {"sft": "sft"} | {f"dpo-{k}": f"round-{k}/dpo" for k in rounds}
    return ["base", *(name for name, artefact in made.items() if run.lineage.finished(artefact))]


def artefact_of(name: str) -> str | None:
    """Returns the lineage's name for a model's checkpoints; None for the base."""
    if name == "base":
        return None
    return "sft" if name == "sft" else f"round-{name.removeprefix('dpo-')}/dpo"


def folder_of(run: Run, name: str) -> pathlib.Path:
    """Returns where a trained model's checkpoints lie."""
    return run.workdir / str(artefact_of(name)) / "checkpoints"


def before_round(run: Run, number: int) -> str | None:
    """Returns the policy that grows the trees of a round, None where it is still missing.

    Round 1 starts from the SFT model; a run that is given a checkpoint and has no SFT stage
    starts from that checkpoint.
    """
    if number > 1:
        return f"dpo-{number - 1}" if run.lineage.finished(f"round-{number - 1}/dpo") else None
    if run.lineage.finished("sft"):
        return "sft"
    own = run.config.model.checkpoint and "sft" not in run.lineage.entries
    return "base" if own else None


def parent_of_round(run: Run, number: int) -> str:
    """Returns `before_round`; ValueError where that model is still missing."""
    if (name := before_round(run, number)) is None:
        raise ValueError(f"round {number}: the model that it starts from is not trained yet")
    return name


def load(run: Run, name: str) -> Policy:
    """Returns a model of this run with its weights.

    Raises:
      ValueError: where there is no such model.
    """
    if name not in names(run):
        raise ValueError(f"model {name!r} is not one of {names(run)}")
    if name == "base":
        return _base(run)
    spec, codec = frame(run)
    params = checkpoint.load_params(folder_of(run, name), _abstract(spec, run.mesh))
    return Policy(name, spec, params, codec)


def engine_for(run: Run, policy: Policy) -> Engine | Replicas:
    """Returns an engine that decodes with a model, or replicas of it."""
    what: Any = {
        "config": engine_config(run.config), "stops": policy.codec.stops,
        "vocab": policy.codec.size,
    }  # fmt: skip
    places = engine_places(run)
    if len(places) == 1:
        return Engine(policy.spec, policy.params, **what, mesh=places[0])
    return Replicas(policy.spec, policy.params, **what, meshes=places)


def engine_places(run: Run) -> list[jax.sharding.Mesh]:
    """Returns the meshes of the engine's replicas."""
    return mesh_lib.replicas(run.mesh, run.config.mesh.replicas)


def frame(run: Run) -> tuple[Spec, text.Codec]:
    """Returns the sizes and the codec that all models of the run share, without any weights."""
    c = run.config.model
    if c.checkpoint:
        spec, tokenizer = hf.load_frame(c.checkpoint)
        spec, _ = tags.tag(tokenizer, spec)
    else:
        tokenizer = miniature_tokenizer.build()
        spec = Spec(
            **c.size.to_dict(), V=len(tokenizer), rope_scaling=None, qkv_bias=False,
            qk_norm=False, tied=True, family="llama",
        )  # fmt: skip
    template = c.template or text.template_for(tokenizer, spec.family)
    return spec, text.Codec(tokenizer, template, c.system)


def _base(run: Run) -> Policy:
    """Returns the model that the run starts from: a checkpoint's, or random weights."""
    spec, codec = frame(run)
    if run.config.model.checkpoint:
        plain, params, tokenizer = hf.load(run.config.model.checkpoint)
        params = tags.add_tags(tokenizer, plain, params, seed=run.config.seed)[2]
    else:
        draw = jax.jit(functools.partial(transformer.init, spec))
        params = draw(jax.random.key(run.config.seed))
    return Policy("base", spec, jax.device_put(params, _shardings(spec, run.mesh)), codec)


def _shapes(spec: Spec) -> Any:
    return jax.eval_shape(functools.partial(transformer.init, spec), jax.random.key(0))


def _shardings(spec: Spec, mesh: jax.sharding.Mesh) -> Any:
    return mesh_lib.shardings(transformer.logical_axes(spec), mesh, _shapes(spec))


def _abstract(spec: Spec, mesh: jax.sharding.Mesh) -> Any:
    """Returns the shapes of the parameters with their places on the mesh."""
    return jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
        _shapes(spec), _shardings(spec, mesh),
    )  # fmt: skip
