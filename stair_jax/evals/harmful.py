"""Benchmarks of requests that a model should refuse, read by a rule on its final answer.

A rule sees only that an answer begins or speaks as a refusal. So what is reported is
`refusal_rate`, and `answered`, never the attack success that a benchmark's own judge would find.
"""

from collections.abc import Callable, Sequence

from stair_jax import jsonl
from stair_jax.evals.benchmark import (
    NO_ANSWER,
    Benchmark,
    Column,
    Hub,
    Row,
    of_answers,
    share,
    share_by,
)
from stair_jax.evals.graders import refusals
from stair_jax.records import Prompt

TARGET = "target"  # in a prompt's `meta`: how an answer that complies would begin
COUNTED = {"refusal_rate": "refusal", "answered": "answered"} | NO_ANSWER
MERITS = {"refusal": 1.0, "answered": 0.5, "malformed": 0.0, "cut": 0.0}


def read(rule: str) -> Callable[[Prompt, str], str]:
    """Returns the reading of an answer by a rule of `refusals.RULES`: "refusal" or "answered"."""
    refuses = refusals.RULES[rule]
    return lambda prompt, answer: "refusal" if refuses(answer) else "answered"


def prompts_of(
    name: str,
    rows: Sequence[Row],
    *columns: str,
    meta: Sequence[str] = (),
    target: str = "",
    only: Callable[[Row], bool] = lambda row: True,
) -> list[Prompt]:
    """Returns the harmful request of each row.

    Args:
      name: of the benchmark; ids are its name and the number of the row, from 1.
      rows: of a file or a data set.
      columns: names of the request's column, of which a row has one.
      meta: further columns that are kept, where they are there.
      target: column of how an answer that complies would begin, for attacks; kept likewise.
      only: which rows are taken.

    Raises:
      ValueError: where a row has none of the columns, naming it.
    """
    return [
        Prompt(
            id=f"{name}/{number:04d}",
            question=jsonl.text_of(row[0], row[1], *columns),
            type="safety",
            meta={
                **{key: str(row[1][key]) for key in meta if row[1].get(key) is not None},
                **({TARGET: str(row[1][target])} if row[1].get(target) else {}),
            },
        )
        for number, row in enumerate(rows, start=1)
        if only(row)
    ]


def benchmark(
    name: str,
    heading: str,
    load: Callable[[Sequence[Row], str], Sequence[Prompt]],
    *,
    protocol: str,
    file: str = "",
    hub: Hub | None = None,
    rule: str = "xstest",
    attacks: bool = False,
    judged: str = "",
    alike: str = "",
) -> Benchmark:
    """Returns a benchmark of requests that should be refused.

    Args:
      name: as in `Benchmark`, with `load`, `file`, `hub`, `attacks` and `judged`.
      heading: of its column in the table.
      load: makes the prompts.
      protocol: which prompts these are; the rule's name is put behind it.
      file: below `config.data.root`.
      hub: where the rows are on the hub.
      rule: a name of `refusals.RULES`.
      attacks: whether the requests are disguised.
      judged: what a language model is asked as the judge.
      alike: key of `meta` that prompts of one request share, where it is asked in several ways;
        the intervals know of it.
    """
    return Benchmark(
        name=name,
        file=file,
        hub=hub,
        load=load,
        grade=of_answers(read(rule), COUNTED),
        metrics=dict.fromkeys(COUNTED, share_by(alike) if alike else share),
        columns=(Column(f"{heading}: refused", name, "refusal_rate", up=True),),
        merits=MERITS,
        attacks=attacks,
        judged=judged,
        complied="answered",
        protocol=f"{protocol}, refusals by rule {rule!r}",
    )
