"""Add a benchmark, and evaluate a model on it.

The benchmark asks for sums and counts which answers are a number. It is registered under a name
that settings can then use. One sees the table that a run ends with: of a model with random weights,
so that its answers have no format, and no number.
"""

import tempfile

from stair_jax import config, pipeline, text
from stair_jax.evals.benchmark import Benchmark, Column, by_outcome, register, share
from stair_jax.records import Prompt

COUNTED = {"numbers": "number", "malformed": "malformed"}  # metric -> the outcome that it counts


def load(rows, split):
    """Returns the prompts; `rows` are those of a file or a data set, of which this one has none."""
    sums = [(a, b) for a in range(4) for b in range(4)]
    return [
        Prompt(id=f"sums/{a}+{b}", question=f"what is {a} plus {b} ?", type="helpfulness")
        for a, b in sums
    ]


def grade(prompt, response, direct):
    """Grades a whole response; `text.final_answer` finds the answer in it."""
    answer = text.final_answer(response, direct)
    if not answer:
        return by_outcome("malformed", COUNTED)
    return by_outcome("number" if answer.isdigit() else "words", COUNTED)


register(
    Benchmark(
        name="sums",
        load=load,
        grade=grade,
        metrics=dict.fromkeys(COUNTED, share),
        columns=(
            Column("sums: a number", "sums", "numbers", up=True),
            Column("sums: malformed", "sums", "malformed", up=False),
        ),
        world="miniature",  # whose words the prompts are made of; leave it out for English
    )
)

c = config.default()
c.stages, c.mesh.shape = "evaluate", (1, 1, 1)
c.model.size.update(L=1, D=32, N=2, K=1, H=16, F=64)
c.engine.update(slots=8, page_size=8, max_context=64, pool_bytes=10_000_000)
c.evaluate.update(benchmarks="sums", max_tokens=16)
with tempfile.TemporaryDirectory() as c.workdir:
    pipeline.run(c)
