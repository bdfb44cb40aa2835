"""HarmBench and XSTest's harmless prompts behind the same transforms of their text.

A model that refuses whatever looks like an attack is no safer: so harmful and harmless prompts get
the same three readable transforms of `attacks.transforms`, one a prompt, by its row. None of them
is a framing that the recipe `small` teaches. Sources are those of the plain benchmarks.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence

from stair_jax.evals.attacks import transforms
from stair_jax.evals.benchmark import Benchmark, Row
from stair_jax.evals.benchmarks import harmbench, xstest
from stair_jax.records import Prompt

WAYS: Mapping[str, Callable[[str, str], str]] = {  # of a request and its row
    "prefix_injection": lambda request, row: transforms.prefix_injection(request),
    "refusal_suppression": lambda request, row: transforms.refusal_suppression(request),
    "padded": transforms.padded,
}


def _framed(plain: Benchmark, attacks: bool) -> Benchmark:
    name = f"{plain.name}_framed"

    def load(rows: Sequence[Row], split: str) -> list[Prompt]:
        return [_behind(prompt, name) for prompt in plain.load(rows, split)]

    columns = [
        column._replace(heading=column.heading.replace(":", " framed:"), benchmark=name)
        for column in plain.columns
    ]
    return dataclasses.replace(
        plain,
        name=name,
        load=load,
        columns=tuple(columns),
        attacks=attacks,
        protocol=f"each row behind one of {', '.join(WAYS)} (in our words), {plain.protocol}",
    )


def _behind(prompt: Prompt, name: str) -> Prompt:
    row = prompt.id.partition("/")[2]
    way = list(WAYS)[hashlib.sha256(row.encode()).digest()[0] % len(WAYS)]
    return dataclasses.replace(
        prompt,
        id=f"{name}/{row}",
        question=WAYS[way](prompt.question, row),
        meta={"goal": prompt.question, **prompt.meta, "way": way},
    )


BENCHMARKS = (
    _framed(harmbench.BENCHMARKS[0], attacks=True),
    _framed(xstest.BENCHMARKS[0], attacks=False),
)
