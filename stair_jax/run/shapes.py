"""Shapes and places of weights on a mesh, for what is restored, and for what is planned."""

import functools
from collections.abc import Callable
from typing import Any

import jax

from stair_jax import mesh as mesh_lib
from stair_jax.config.schema import TrainConfig
from stair_jax.model import lora, reward, transformer
from stair_jax.model.spec import Spec

Draw = Callable[[jax.Array], Any]  # a key in, a tree of arrays out


def abstract(draw: Draw, axes: Any, mesh: jax.sharding.Mesh) -> Any:
    """Returns the shapes of what `draw` makes, with their places on the mesh."""
    shapes = jax.eval_shape(draw, jax.random.key(0))
    return jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
        shapes,
        mesh_lib.shardings(axes, mesh, shapes),
    )


def weights(spec: Spec, mesh: jax.sharding.Mesh) -> Any:
    """Returns those of a policy, float32."""
    return abstract(functools.partial(transformer.init, spec), transformer.logical_axes(spec), mesh)


def scalar_weights(spec: Spec, mesh: jax.sharding.Mesh) -> Any:
    """Returns those of a reward model with a head, float32."""
    return abstract(functools.partial(reward.init, spec), reward.logical_axes(spec), mesh)


def adapters(spec: Spec, config: TrainConfig, rows: int, mesh: jax.sharding.Mesh) -> Any:
    """Returns those of adapters, and of the `rows` of new tags beside them."""
    return abstract(*drawing_adapters(spec, config, rows), mesh)


def drawing_adapters(spec: Spec, config: TrainConfig, rows: int) -> tuple[Draw, Any]:
    """Returns what draws adapters, `rows` of new tags beside them, and their logical axes."""
    targets = lora.parse(config.lora_targets)
    draw = functools.partial(lora.init, spec, rank=config.lora_rank, targets=targets, new_rows=rows)
    return draw, lora.logical_axes(targets, spec if rows else None)


def cast(tree: Any, dtype: Any) -> Any:
    """Returns the same shapes and places in another dtype."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype, sharding=x.sharding), tree)
