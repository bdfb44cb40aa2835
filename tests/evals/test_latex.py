"""The table in LaTeX, by text that was written by hand."""

import math

import pytest

from stair_jax.evals.benchmark import Column
from stair_jax.evals.report import latex

COLUMNS = [
    Column("XSTest: refused & safe", "xstest", "refusal", up=True),
    Column("100% harm_ful", "harm", "success", up=False),
    Column("judge", "own", "safety", up=None, share=False),
]


def figure(value, low, high, n=9):
    return {"value": value, "n": n, "low": low, "high": high}


RESULTS = {
    "base_1": {
        "xstest": {"refusal": figure(0.88, 0.828, 0.918)},
        "harm": {"success": figure(0.125, 0.0, 0.4)},
        "own": {"safety": figure(-0.5, -0.75, -0.25)},
    },
    "[dpo-1/beam]": {
        "xstest": {"refusal": figure(math.nan, 0.0, 1.0, n=0)},
        "harm": {},
        "own": {"safety": figure(0.333, None, None)},
    },
}
PLAIN = r"""
\begin{tabular}{lrrr}
\toprule
Model & XSTest: refused \& safe $\uparrow$ & 100\% harm\_ful $\downarrow$ & judge \\
\midrule
base\_1 & 88.0 (83--92) & 12.5 (0--40) & $-$0.50 ($-$0.75 to $-$0.25) \\
{[}dpo-1/beam] & -- & -- & 0.33 \\
\bottomrule
\end{tabular}
"""
BESIDE = r"""
\begin{tabular}{lrrr}
\toprule
Model & XSTest: refused \& safe $\uparrow$ & 100\% harm\_ful $\downarrow$ & judge \\
\midrule
base\_1 & 88.0 (83--92) & 12.5 (0--40) & $-$0.50 ($-$0.75 to $-$0.25) \\
\quad published \& old & [72.5] & -- & [$-$0.25] \\
\quad others & -- & [3.0] & -- \\
{[}dpo-1/beam] & -- & -- & 0.33 \\
\bottomrule
\end{tabular}
"""


def test_the_table_by_hand():
    assert "\n" + latex.table(RESULTS, COLUMNS) == PLAIN


def test_published_figures_have_a_row_under_their_model():
    published = {
        "base_1": {
            "published & old": {
                "XSTest: refused & safe": 72.5,
                "judge": -0.25,
                "GSM8K: right": 87.5,
            },
            "others": {"100% harm_ful": 3.0},
        },
        "[dpo-1/beam]": {"published": {"GSM8K: right": 85.8}},
        "gpt": {"published": {"judge": 1.0}},
    }
    assert "\n" + latex.table(RESULTS, COLUMNS, published) == BESIDE
    noted = latex.table(RESULTS, COLUMNS, published, ["a", "b"])
    assert noted == BESIDE.lstrip("\n") + "% a\n% b\n"


def test_a_published_figure_that_is_no_number_is_named():
    message = "published 'judge' of 'base_1' is nan, expected a finite number"
    with pytest.raises(ValueError, match=message):
        latex.table(RESULTS, COLUMNS, {"base_1": {"published": {"judge": math.nan}}})


ESCAPED = [
    ("a & b", r"a \& b"),
    ("5 %", r"5 \%"),
    ("$1", r"\$1"),
    ("#1", r"\#1"),
    ("a_b", r"a\_b"),
    ("{x}", r"\{x\}"),
    ("~^", r"\textasciitilde{}\textasciicircum{}"),
    (r"\a", r"\textbackslash{}a"),
    ("<|>", r"\textless{}\textbar{}\textgreater{}"),
    ("[1] *", "{[}1] {*}"),
    ("dpo-1/best_of_2", r"dpo-1/best\_of\_2"),
]


@pytest.mark.parametrize(("text", "want"), ESCAPED)
def test_special_characters_are_escaped(text, want):
    assert latex.escape(text) == want
    column = Column(text, "xstest", "refusal", up=None)
    lines = latex.table({text: {}}, [column]).splitlines()
    assert lines[2] == rf"Model & {want} \\"
    assert lines[4] == rf"{want} & -- \\"


def test_figures_as_a_file_gives_them_back_are_dashes():
    found = {"base": {"own": {"safety": figure(None, None, None)}}}
    assert r"base & -- \\" in latex.table(found, COLUMNS[2:])
