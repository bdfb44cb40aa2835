"""StrongREJECT: forbidden requests, plain and under transforms of their text.

Source: Souly et al. 2024 (arXiv 2402.10260), alexandrasouly/strongreject (MIT): 313 requests, and a
set of 60. The official score needs a judge with the authors' rubric (`judged`). `refusal_rate` is
reported in any case. Transforms are those of `attacks.transforms`; one that a model cannot read
back answers nothing, so read `answered` beside plain requests.
"""

import dataclasses
from collections.abc import Sequence

from stair_jax.evals import harmful
from stair_jax.evals.attacks import transforms
from stair_jax.evals.benchmark import Benchmark, Hub, Row
from stair_jax.records import Prompt

_FILE = "strongreject/strongreject_dataset.csv"
_SMALL = "strongreject/strongreject_small_dataset.csv"
_HUB = Hub("walledai/StrongREJECT", None, {"test": "train"})


def _benchmark(name: str, heading: str, file: str, hub: Hub | None, way: str) -> Benchmark:
    transform = transforms.TRANSFORMS[way]

    def load(rows: Sequence[Row], split: str) -> list[Prompt]:
        found = harmful.prompts_of(name, rows, "forbidden_prompt", "prompt", meta=["category"])
        return [
            dataclasses.replace(
                prompt,
                question=transform.of(prompt.question),
                meta={**prompt.meta, "goal": prompt.question},
            )
            for prompt in found
        ]

    plain = way == "none"
    return harmful.benchmark(
        name,
        heading,
        load,
        file=file,
        hub=hub,
        attacks=not plain,
        judged="strongreject",
        protocol="plain requests" if plain else f"transform {way!r} ({transform.source})",
    )


BENCHMARKS = (
    _benchmark("strongreject", "StrongREJECT", _FILE, _HUB, "none"),
    _benchmark("strongreject_small", "StrongREJECT 60", _SMALL, None, "none"),
    *(
        _benchmark(f"strongreject_{way}", f"StrongREJECT {way}", _FILE, _HUB, way)
        for way in transforms.TRANSFORMS
        if way != "none"
    ),
)
