"""All of the engine's speed on one GPU, at the shapes of Llama 3.2 1B and 3.1 8B.

python -m benchmarks.gpu --out FILE.json            ends within 9 minutes
python -m benchmarks.gpu --out FILE.json --tiny     the same steps at toy sizes, on any device

Weights are random and drawn on the device. What is measured first matters most; what the time did
not allow is listed as left out, and so is what did not fit the memory. FILE.json is written anew
after every step. Needs jax, flax, numpy, einops, ml_collections and jaxtyping alone. Exits with 1
where a step failed.
"""

import argparse
import dataclasses
import gc
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import jax

from benchmarks import harness, kernel_speed, random_search, roofline
from benchmarks.harness import Claim
from benchmarks.kernel_speed import Case
from benchmarks.random_search import Shape
from benchmarks.roofline import Bench, Ceilings, Load
from stair_jax.sections import EngineConfig

Job = tuple[str, str, Callable[[], Mapping[str, Any]]]  # section, label, what measures it
TOLERANCE = {"bfloat16": 2e-2, "float32": 1e-4}  # of the kernel, to float32 attention


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What is measured, in the order of what matters."""

    cases: tuple[Case, ...]  # of paged attention
    vocab: int
    copied: tuple[tuple[int, ...], int]  # shape of the pool, pages copied
    ceilings: tuple[int, int]  # bytes copied, side of the matrices
    sizes: tuple[str, ...]  # keys of roofline.SPECS
    first: tuple[Load, ...]  # of every size, before its search
    later: tuple[Load, ...]  # of every size, once all searches are done
    search: Shape
    engine: tuple[int, int, int]  # of the search: slots, page size, context
    repetitions: int


_CASES = (
    Case(256, 4, 128, 600), Case(64, 4, 128, 600), Case(256, 4, 64, 600), Case(64, 16, 128, 600),
    Case(256, 4, 128, 2048), Case(1, 4, 128, 2048), Case(16, 4, 128, 1024), Case(512, 4, 64, 600),
)  # fmt: skip
FULL = Plan(
    cases=_CASES, vocab=128_256, copied=((32, 2048, 8, 16, 128), 256), ceilings=(2**30, 8192),
    sizes=("8b", "1b"),
    first=(Load(256, 600), Load(64, 600), Load(256, 600, family=4)),
    later=(
        Load(1, 600), Load(512, 600), Load(16, 600), Load(128, 2048), Load(128, 600), Load(32, 600)
    ),
    search=Shape(trees=128, in_flight=96, iterations=12, prompt=300, step=64, rollout=128),
    engine=(256, 64, 1024),  # large pages: tables of few widths, and so few programs to compile
    repetitions=3,
)  # fmt: skip
TINY = Plan(
    cases=(Case(7, 4, 16, 21, K=2, Z=8), Case(2, 8, 16, 40, K=2, Z=8)), vocab=300,
    copied=((2, 20, 2, 8, 16), 5), ceilings=(2**20, 64), sizes=("miniature",),
    first=(Load(4, 20), Load(8, 20, family=4)), later=(Load(2, 20),),
    search=Shape(trees=6, in_flight=3, iterations=4, prompt=12, step=5, rollout=8),
    engine=(8, 8, 104), repetitions=1,
)  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    """Measures, writes and prints."""
    options = _options(argv)
    figures = measure(options)
    print(tables(figures))
    print(harness.claims_table(claims_of(figures)))
    sys.exit(1 if figures["failed"] else 0)


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = harness.parser_of(__doc__ or "")
    parser.add_argument("--tiny", action="store_true", help="toy sizes, to try the program out")
    parser.add_argument("--minutes", type=float, default=7.0,
                        help="no step is begun after them (default: %(default)s)")  # fmt: skip
    return harness.parse(parser, argv)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Returns all figures; a step that fails is told, and the others go on."""
    plan = TINY if options.tiny else FULL
    dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    figures: dict[str, Any] = {
        "benchmark": "gpu", "machine": harness.machine("flax"),
        "settings": {
            "tiny": options.tiny, "dtype": dtype, "search": dataclasses.asdict(plan.search)
        },
        "left_out": [], "failed": [],
    }  # fmt: skip
    with harness.Watch() as watch:
        limits = roofline.ceilings(dtype, copy_bytes=plan.ceilings[0], side=plan.ceilings[1])
        figures["ceilings"] = dataclasses.asdict(limits)
        for section, label, job in jobs(plan, limits, dtype):
            if watch.elapsed > 60 * options.minutes:
                figures["left_out"].append(f"{section} {label}: the time was over")
                continue
            _do(section, label, job, figures)
            harness.write(options.out, figures, claims_of(figures))
    figures["seconds"] = watch.seconds
    harness.write(options.out, figures, claims_of(figures))
    return figures


def _do(
    section: str, label: str, job: Callable[[], Mapping[str, Any]], figures: dict[str, Any]
) -> None:
    """Runs a step and files its figures, or why there are none."""
    try:
        found = job()
    except Exception as error:  # anything: the other steps must not be lost
        if "RESOURCE_EXHAUSTED" in str(error):
            figures["left_out"].append(f"{section} {label}: out of memory")
        else:
            traceback.print_exc()
            figures["failed"].append(f"{section} {label}: {type(error).__name__}: {error}")
    else:
        figures.setdefault(section, []).append({"label": label, **found})
        harness.say(f"{section} {label}: {harness.brief(found)}")
    gc.collect()  # an engine's pool goes before the next one comes


def jobs(plan: Plan, limits: Ceilings, dtype: str) -> Iterator[Job]:
    """Yields all steps in the order of what matters."""
    interpret = jax.default_backend() == "cpu"
    for case in plan.cases:
        label = f"R={case.R} M={case.M} H={case.H} {case.context} tokens"
        yield "attention", label, partial(
            kernel_speed.attention, case, limits, dtype, interpret=interpret
        )  # fmt: skip
    for rows in (64, 256):
        label = f"{rows} x {plan.vocab}"
        yield "top_k", label, partial(kernel_speed.largest, rows, plan.vocab, 50)
        yield "sampler", label, partial(kernel_speed.sampler, rows, plan.vocab, limits)
    shape, pairs = plan.copied
    yield "page_copies", str(shape), partial(kernel_speed.copies, shape, pairs, dtype, limits)
    models = Models(plan, limits, dtype)
    for size in plan.sizes:
        yield from (models.decode(size, load) for load in plan.first)
        yield models.search(size)
    for size in plan.sizes:
        yield models.decode(size, plan.first[0], attention="xla")
        yield from (models.decode(size, load) for load in plan.later)


class Models:
    """Steps that need a whole model; one model's weights are on the device at a time."""

    def __init__(self, plan: Plan, limits: Ceilings, dtype: str):
        self._plan, self._limits, self._dtype = plan, limits, dtype
        self._weights: dict[str, Any] = {}

    def _of(self, size: str) -> Any:
        if size not in self._weights:
            self._weights.clear()
            self._weights[size] = roofline.weights(roofline.SPECS[size], self._dtype)
        return self._weights[size]

    def decode(self, size: str, load: Load, attention: str = "auto") -> Job:
        """Returns the step that measures decode and extend under a load."""
        plan = self._plan

        def job() -> dict[str, Any]:
            config = load.config(self._dtype, chunk=8, page_size=16, prefill_rows=min(load.rows, 8))
            config = dataclasses.replace(config, attention=attention)
            bench = Bench(roofline.SPECS[size], self._of(size), load, config)
            return roofline.measure(bench, self._limits, plan.repetitions)

        how = "" if attention == "auto" else f", attention {attention}"
        return "engine", f"{size}, {load.rows} x {load.context}, family {load.family}{how}", job

    def search(self, size: str) -> Job:
        """Returns the step that grows trees."""
        shape, (slots, page_size, context) = self._plan.search, self._plan.engine
        config = EngineConfig(
            slots=slots, page_size=page_size, pool_bytes=0, chunk=8, prefill_rows=8,
            max_context=context, dtype=self._dtype,
        )  # fmt: skip

        def job() -> dict[str, float]:
            spec = roofline.SPECS[size]
            return random_search.run(spec, self._of(size), shape, config, self._limits)

        return "search", f"{size}, {shape.trees} trees", job


def claims_of(figures: Mapping[str, Any]) -> dict[str, Claim]:
    """Returns what is claimed of the steps that ran."""
    claims = {}
    attention = figures.get("attention", [])
    if attention:
        worst = max(row["kernel_error"] for row in attention)
        claims["kernel_error"] = Claim(worst, "<=", TOLERANCE[figures["settings"]["dtype"]])
    for row in figures.get("engine", []):
        if row["label"] == "8b, 256 x 600, family 1":
            claims["decode_share_8b_256"] = Claim(row["decode_share"], ">=", 0.60)
    for row in figures.get("search", []):
        size = row["label"].split(",")[0]
        claims[f"busy_slots_{size}"] = Claim(row["busy_slots"], ">=", 0.90)
        claims[f"computed_per_unique_token_{size}"] = Claim(
            row["computed_per_unique_token"], "<=", 1.05
        )
        claims[f"recompiles_{size}"] = Claim(row["recompiles"], "==", 0)
    return claims


def tables(figures: Mapping[str, Any]) -> str:
    """Returns a table a section; shares are of the machine's bound."""
    limits = figures["ceilings"]
    text = [
        f"copy {limits['bytes_per_s'] / 1e9:.4g} GB/s, matrix product"
        f" {limits['flops_per_s'] / 1e12:.4g} TFLOP/s, in {figures['settings']['dtype']}"
    ]
    for section in ("attention", "top_k", "sampler", "page_copies", "engine"):
        if rows := figures.get(section):
            text.append(harness.table(section, list(rows[0]), [list(row.values()) for row in rows]))
    if rows := figures.get("search"):
        names = [name for name in rows[0] if name != "label"]
        cells = [(name, *(row[name] for row in rows)) for name in names]
        text.append(harness.table("search", ("figure", *(row["label"] for row in rows)), cells))
    text += [f"left out: {line}" for line in figures["left_out"]]
    text += [f"FAILED: {line}" for line in figures["failed"]]
    return "\n".join(text)


if __name__ == "__main__":
    main()
