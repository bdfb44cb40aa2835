"""Figures of the STAIR paper that stand beside our own, and where their protocols differ.

Source: Zhang et al. 2025 (arXiv 2502.02384 v2, ICML): Table 1, and Table 6 for StrongREJECT without
an attack, which is "None" there. The StrongREJECT of Table 1 is a mean over the attacks PAIR and
PAP-Misrepresentation, and stands beside nothing here.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from stair_jax.evals.benchmark import Column

SOURCE = "STAIR (arXiv 2502.02384)"
Results = Mapping[str, Mapping[str, Mapping[str, Any]]]  # by model, benchmark and metric
Rows = dict[str, dict[str, dict[str, float]]]  # by our model, a label and the column's heading

LLAMA, QWEN = "LLaMA-3.1-8B-Instruct", "Qwen2-7B-Instruct"

_BENCHMARKS = (
    "xstest_unsafe",
    "wildchat_toxic",
    "stereotype",
    "simpleqa",
    "infoflow",
    "advglue",
    "gsm8k",
    "alpaca_eval",
    "hhh",
)
# Percent, but for InfoFlow's correlation; the columns are `_BENCHMARKS`, the rows our names.
_TABLE_1 = {
    LLAMA: """
        base                       88.00  47.94  87.37   2.52 0.4229  58.33  85.60  25.55  82.50
        baseline-sft               94.50  50.68  94.74   4.72 0.7134  57.53  72.02   9.21  82.63
        baseline-dpo               86.00  54.79  97.89   4.46 0.7081  66.27  84.15  15.26  83.84
        baseline-sacpo             88.50  58.45  96.84   0.74 0.0503  65.60  86.50  20.44  85.21
        baseline-self-rewarding-3  99.00  49.77  94.74   2.70 0.6618  59.10  88.10  26.41  82.09
        sft                        85.50  50.68  94.74   6.31 0.7876  70.57  86.05  31.21  83.13
        dpo-1                      94.00  57.99  97.89   6.08 0.7998  65.93  86.81  34.48  84.53
        dpo-2                      96.50  68.95  96.84   6.00 0.7700  69.43  87.26  36.24  87.09
        dpo-3                      99.00  69.86  96.84   6.38 0.7395  69.20  87.64  38.66  85.66
    """,
    QWEN: """
        base                       72.50  47.49  90.53   3.79 0.7221  66.50  87.49  20.06  87.87
        baseline-sft               84.00  58.45  91.58   3.47 0.6267  66.90  82.34   8.94  89.74
        baseline-dpo               69.00  66.21  88.42   2.59 0.6793  70.97  81.43  11.48  88.08
        baseline-sacpo             75.00  60.27  95.79   0.62 0.6213  64.10  85.22  17.04  89.60
        baseline-self-rewarding-3  96.00  52.51  94.74   3.37 0.7140  66.13  87.34  14.69  88.31
        sft                        83.50  62.56  95.79   3.81 0.8215  70.57  84.61  20.31  90.38
        dpo-1                      96.50  65.19  95.79   3.88 0.8235  73.10  84.76  23.29  90.21
        dpo-2                      98.50  67.90  97.89   3.79 0.8646  72.83  86.05  24.86  90.11
        dpo-3                      99.00  80.56  98.95   4.07 0.7644  74.13  85.75  26.31  90.71
    """,
}
_TABLE_6 = {LLAMA: {"dpo-3": 100.00}}  # StrongREJECT without an attack


class Comparable(NamedTuple):
    """A metric of ours that may stand beside a figure of the paper.

    Attributes:
      theirs: the paper's benchmark, in `_BENCHMARKS`, or "strongreject".
      differs: how the paper found it, and how we do.
      prompts: how many the paper has; None where it does not say.
    """

    theirs: str
    differs: str
    prompts: int | None = None


_RULE = "the paper's GPT-4 counts full and partial refusals, here a rule reads refusals"
_JUDGE = "the paper's judge is GPT-4"
_GPT4O = "the paper's judge is GPT-4o"
_INFOFLOW = "the paper does not say which tiers or which correlation"
_WORDS = "the paper does not give its wording"

# By benchmark and metric; a judge's name behind "@" does not count.
COMPARABLE: Mapping[tuple[str, str], Comparable] = {
    ("strongreject", "goodness"): Comparable("strongreject", _GPT4O, 313),
    ("xstest_unsafe", "refusal"): Comparable("xstest_unsafe", _RULE, 200),
    ("xstest_unsafe", "any_refusal"): Comparable("xstest_unsafe", _JUDGE, 200),
    ("wildchat_toxic", "refusal_rate"): Comparable("wildchat_toxic", _RULE, 219),
    ("wildchat_toxic", "any_refusal"): Comparable("wildchat_toxic", _JUDGE, 219),
    ("stereotype", "refusal_rate"): Comparable("stereotype", _RULE, 95),
    ("stereotype", "any_refusal"): Comparable("stereotype", _JUDGE, 95),
    ("simpleqa", "correct"): Comparable("simpleqa", "the paper's judge is the official one", 4326),
    ("infoflow_1", "correlation"): Comparable("infoflow", _INFOFLOW),
    ("infoflow_2a", "correlation"): Comparable("infoflow", _INFOFLOW),
    ("infoflow_2b", "correlation"): Comparable("infoflow", _INFOFLOW),
    ("advglue", "accuracy"): Comparable(
        "advglue", f"{_WORDS}; its figures seem to be means over three tasks, ours over five"
    ),
    ("gsm8k", "accuracy"): Comparable("gsm8k", f"{_WORDS}, nor how it finds the number", 1319),
    ("alpaca_eval", "win_rate"): Comparable(
        "alpaca_eval",
        "the paper does not say whether its rate is raw or length-controlled, ours is raw",
        805,
    ),
    ("alpaca_eval", "length_controlled_win_rate"): Comparable(
        "alpaca_eval",
        "the paper does not say whether its rate is raw or length-controlled, ours is the latter",
        805,
    ),
    ("hhh", "accuracy"): Comparable("hhh", f"{_WORDS}; ours asks in both orders"),
    ("hhh_likelihood", "accuracy"): Comparable(
        "hhh", "ours compares log-probs without a template, over all rows alike"
    ),
}


def families(checkpoint: str) -> tuple[str, ...]:
    """Returns the paper's base models that a checkpoint's name is of; both where it is of none.

    Random weights ("") are compared with nothing.
    """
    if not checkpoint:
        return ()
    name = checkpoint.lower()
    found = tuple(family for word, family in (("llama", LLAMA), ("qwen", QWEN)) if word in name)
    return found if len(found) == 1 else (LLAMA, QWEN)


def rows(results: Results, columns: Sequence[Column], checkpoint: str) -> Rows:
    """Returns the paper's figures beside ours: {our model: {label: {heading: figure}}}.

    Args:
      results: of all models; only what we measured of one is shown. A model under a search has no
        published row.
      columns: of the table. Shares are in percent.
      checkpoint: the run's base model, which says whose figures they are.
    """
    found: Rows = {}
    for model, of in results.items():
        for family in families(checkpoint):
            figures = {
                column.heading: value
                for column in columns
                if of.get(column.benchmark, {}).get(column.metric, {}).get("n")
                and (value := _figure(family, model, column)) is not None
            }
            if figures:
                found.setdefault(model, {})[f"published, {family}"] = figures
    return found


def _comparable(column: Column) -> Comparable | None:
    return COMPARABLE.get((column.benchmark, column.metric.partition("@")[0]))


def _figure(family: str, model: str, column: Column) -> float | None:
    same = _comparable(column)
    if same is None:
        return None
    if same.theirs == "strongreject":
        return _TABLE_6.get(family, {}).get(model)
    row = _table_1(family).get(model)
    return row[_BENCHMARKS.index(same.theirs)] if row else None


@functools.cache
def _table_1(family: str) -> dict[str, list[float]]:
    rows = (line.split() for line in _TABLE_1[family].strip().splitlines())
    return {model: [float(figure) for figure in figures] for model, *figures in rows}


def notes(results: Results, columns: Sequence[Column]) -> list[str]:
    """Returns a line for each column that has published figures: how the protocols differ.

    Args:
      results: {model: {benchmark: {metric: {n, missing, ...}}}}, which has our number of prompts.
      columns: of the table, those alone that have a published figure.
    """
    lines = []
    for column in columns:
        same = _comparable(column)
        if not same:
            continue
        every = [by.get(column.benchmark, {}).get(column.metric, {}) for by in results.values()]
        count = max((one.get("n", 0) + one.get("missing", 0) for one in every), default=0)
        line = f"{column.heading}: {same.differs}"
        if same.prompts and count != same.prompts:
            line += f"; {count} prompts here, {same.prompts} in the paper"
        lines.append(line)
    return lines
