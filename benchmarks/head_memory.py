"""Memory that the head and the cross-entropy need in training: chunked against all logits at once.

python -m benchmarks.head_memory --out FILE.json [--rows 4] [--length 4096] [--chunk 1024]

Of Llama-3.1-8B's head, by default at 4 rows of 4096 tokens. Nothing is run: XLA compiles the value
and the gradient of the summed log-probs, and says how many bytes of temporaries the program needs
beside its arguments and results. For the CPU, and where JAX's CUDA plugin is installed for the GPUs
in stair_jax/plan/targets, which need not be there.
"""

import argparse
import dataclasses
import pathlib
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from benchmarks import harness, roofline
from benchmarks.harness import Claim
from stair_jax import ops
from stair_jax.model.spec import Spec

GPU_TARGETS = pathlib.Path(__file__).parents[1] / "stair_jax" / "plan" / "targets"
SHARE = 0.2  # of the temporaries of the gathered side, at most
GIB = 2**30
COLUMNS = ("compiled for", "log_softmax", "gathered", "chunked", "chunked/gathered")


def log_softmax(hidden: Any, head: Any, target: Any, wanted: Any) -> jax.Array:
    """Returns the summed log-probs of wanted targets out of those of all tokens."""
    logp_XV = jax.nn.log_softmax(ops.matmul(hidden, head.astype(hidden.dtype).T), axis=-1)
    return jnp.sum(jnp.take_along_axis(logp_XV, target[:, None], axis=-1)[:, 0] * wanted)


def gathered(hidden: Any, head: Any, target: Any, wanted: Any) -> jax.Array:
    """Returns the same from all logits, without the log-probs of the other tokens."""
    logits_XV = ops.matmul(hidden, head.astype(hidden.dtype).T)
    chosen_X = jnp.take_along_axis(logits_XV, target[:, None], axis=-1)[:, 0]
    return jnp.sum((chosen_X - jax.nn.logsumexp(logits_XV, axis=-1)) * wanted)


def chunked(hidden: Any, head: Any, target: Any, wanted: Any, *, chunk: int) -> jax.Array:
    """Returns the same from the logits of a chunk at a time."""
    logp_X, _ = ops.linear_logp(hidden, head, target, wanted, vocab=head.shape[0], chunk=chunk)
    return logp_X.sum()


@dataclasses.dataclass(frozen=True)
class Place:
    """What is compiled for."""

    device: Any
    dtype: str  # to compute in

    @property
    def claimed(self) -> bool:
        """Whether it computes in this dtype; CPUs turn bfloat16 into float32 copies first."""
        return self.device.platform != "cpu" or self.dtype == "float32"


def temporaries(side: Callable[..., jax.Array], place: Place, spec: Spec, positions: int) -> int:
    """Returns the bytes of temporaries of a side's value and gradient.

    Args:
        side: one of the functions above.
        place: to compile for.
        spec: sizes; the head is float32, as it is trained.
        positions: tokens of all rows together.
    """
    where = SingleDeviceSharding(place.device)
    shapes = (
        ((positions, spec.D), jnp.dtype(place.dtype)),
        ((spec.V, spec.D), jnp.float32),
        ((positions,), jnp.int32),
        ((positions,), jnp.bool),
    )
    given = [jax.ShapeDtypeStruct(shape, dtype, sharding=where) for shape, dtype in shapes]
    program = jax.jit(jax.value_and_grad(side, argnums=(0, 1))).lower(*given)
    # Autotuning would run candidates, on a GPU that need not be there.
    options: Any = {} if place.device.platform == "cpu" else {"xla_gpu_autotune_level": 0}
    memory: Any = program.compile(options).memory_analysis()
    return memory.temp_size_in_bytes


def gpus() -> dict[str, Any]:
    """Returns a device of each GPU in `GPU_TARGETS`; None of those that cannot be compiled for."""
    found: dict[str, Any] = {}
    for file in sorted(GPU_TARGETS.glob("*.txt")):
        try:
            topology = topologies.get_topology_desc(
                topology_name=file.stem,
                platform="cuda",
                target_config=file.read_text(),
                topology="1x1x1",
            )
            found[file.stem] = topology.devices[0]
        except Exception as error:  # the plugin's loader has several ways to say no
            harness.say(f"{file.stem}: {str(error).splitlines()[0]}")
            found[file.stem] = None
    return found


def measure(options: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Claim]]:
    """Returns the bytes by place and side, and the claims."""
    spec, positions = roofline.SPECS[options.size], options.rows * options.length
    cpu = jax.devices("cpu")[0]
    places = {"cpu float32": Place(cpu, "float32"), "cpu bfloat16": Place(cpu, "bfloat16")}
    devices = gpus()
    places |= {f"{n} bfloat16": Place(d, "bfloat16") for n, d in devices.items() if d is not None}
    sides = (log_softmax, gathered, partial(chunked, chunk=options.chunk))
    figures: dict[str, Any] = {f"{n} bfloat16": None for n, d in devices.items() if d is None}
    claims = {}
    for name, place in places.items():
        one, two, three = (temporaries(side, place, spec, positions) for side in sides)
        figures[name] = {"log_softmax": one, "gathered": two, "chunked": three}
        harness.say(f"{name}: {harness.brief(figures[name])}")
        if place.claimed:
            claims[f"share, {name}"] = Claim(three / two, "<=", SHARE)
    return figures, claims


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table and writes the figures."""
    options = harness.parse(_parser(), argv)
    figures, claims = measure(options)
    title = (
        f"Temporaries of the head in GiB, {options.rows} x {options.length} tokens, "
        f"{options.size}, chunks of {options.chunk}"
    )
    rows = [
        (name, *(bytes_ / GIB for bytes_ in f.values()), f["chunked"] / f["gathered"])
        if f
        else (name, "no plugin", "", "", "")
        for name, f in figures.items()
    ]
    print(harness.table(title, COLUMNS, rows))
    print(harness.claims_table(claims))
    load = {name: getattr(options, name) for name in ("size", "rows", "length", "chunk")}
    told = {"machine": harness.machine(), "load": load, "temporaries_bytes": figures}
    harness.write(options.out, told, claims)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = harness.parser_of(__doc__ or "")
    parser.add_argument("--size", choices=roofline.SPECS, default="8b", help="of the model")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=4096, help="tokens of a row")
    parser.add_argument("--chunk", type=int, default=1024, help="positions of a chunk")
    return parser


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    sys.exit(main())
