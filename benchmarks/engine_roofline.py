"""Decode and extend of the engine against the machine's own copy bandwidth and matrix rate.

python -m benchmarks.engine_roofline --out FILE.json [--size miniature|1b|8b]

Weights are random and drawn on the device; sequences have the miniature's usual length, or one
of the larger models'. A step's time is that of `Engine.step`, the host's work included; the
device's own time stands beside it. `family` 4: four sequences share their whole prompt, as
siblings in a tree do; the bound is still that of rows that each read all their keys.
"""

import argparse
import gc
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import jax

from benchmarks import harness, roofline
from benchmarks.roofline import Bench, Ceilings, Load

BATCHES = tuple(2**i for i in range(10))  # 1 to 512
CONTEXT = {"miniature": 56, "1b": 600, "8b": 600}  # tokens: means of real trees
COLUMNS = (
    "rows",
    "family",
    "context",
    "step_ms",
    "device_step_ms",
    "tokens_per_s",
    "decode_share",
    "extend_tokens_per_s",
    "extend_share",
)


def main(argv: list[str] | None = None) -> None:
    """Measures, prints and writes."""
    options = _options(argv)
    figures = measure(options)
    print(tables(figures))
    harness.write(options.out, figures, {})


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = harness.parser_of(__doc__ or "")
    parser.add_argument("--size", choices=roofline.SPECS, default="miniature")
    parser.add_argument("--most", type=int, default=BATCHES[-1], help="rows of the largest batch")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=12.0, help="no batch is begun after them")
    return harness.parse(parser, argv)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Returns all figures; batches that the time or the memory did not allow are listed as such."""
    large = options.size != "miniature"
    dtype = "bfloat16" if jax.default_backend() != "cpu" else "float32"
    copy_bytes, side = (2**30, 8192) if large else (2**28, 2048)
    limits = roofline.ceilings(dtype, copy_bytes=copy_bytes, side=side)
    figures: dict[str, Any] = {
        "benchmark": "engine_roofline",
        "machine": harness.machine(),
        "settings": {"size": options.size, "dtype": dtype, "context": CONTEXT[options.size]},
        "ceilings": {"bytes_per_s": limits.bytes_per_s, "flops_per_s": limits.flops_per_s},
    }
    with harness.Watch() as watch:
        figures["loads"], figures["left_out"] = _loads(options, limits, dtype, watch)
    return figures | {"others": watch.others}


def _loads(
    options: argparse.Namespace,
    limits: Ceilings,
    dtype: Literal["float32", "bfloat16"],
    watch: harness.Watch,
) -> tuple[list[Mapping[str, Any]], list[str]]:
    spec = roofline.SPECS[options.size]
    params = roofline.weights(spec, dtype)
    found: list[Mapping[str, Any]] = []
    left_out: list[str] = []
    for load in _wanted(options):
        name = f"{load.rows} rows, family {load.family}"
        if watch.elapsed > 60 * options.minutes:
            left_out.append(f"{name}: the {options.minutes} minutes were over")
            continue
        config = load.config(
            dtype,
            chunk=8,
            page_size=8 if options.size == "miniature" else 16,
            prefill_rows=min(load.rows, 32 if options.size == "miniature" else 8),
        )
        try:
            bench = Bench(spec, params, load, config)
            found.append(roofline.measure(bench, limits, options.repetitions))
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            left_out.append(f"{name}: out of memory")
            continue
        harness.say(f"{name}: {harness.brief(found[-1])}")
        del bench
        gc.collect()  # the pool goes before the next one comes
    return found, left_out


def _wanted(options: argparse.Namespace) -> Iterator[Load]:
    context = CONTEXT[options.size]
    for rows in BATCHES:
        if rows <= options.most:
            yield Load(rows, context)
    for rows in BATCHES:
        if 64 <= rows <= options.most:
            yield Load(rows, context, family=4)


def tables(figures: Mapping[str, Any]) -> str:
    """Returns the ceilings and a row a load."""
    limits, settings = figures["ceilings"], figures["settings"]
    title = (
        f"{settings['size']} in {settings['dtype']}; measured on this machine: copy"
        f" {limits['bytes_per_s'] / 1e9:.4g} GB/s, matrix product"
        f" {limits['flops_per_s'] / 1e9:.4g} GFLOP/s"
    )
    rows = [[load[name] for name in COLUMNS] for load in figures["loads"]]
    lines = [harness.table(title, COLUMNS, rows)]
    lines += [f"left out: {line}" for line in figures["left_out"]]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
