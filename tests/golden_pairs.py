"""Builds the golden preference data from the golden trees: `python -m tests.golden_pairs FILE DIR`.

Rows are compared as multisets; where the pairing is random, its count and its two sides. Ends
with `N passed, M failed`; exit 1 on a difference, 2 when there is no case.
"""

import argparse
import collections
import json
import pathlib
import sys

from stair_jax.config.schema import PairsConfig
from stair_jax.search.official import from_official
from stair_jax.search.pairs import good_and_bad, pairs_of, responses_of

TOLERANCE = 1e-4  # of a value


def pairs_config(settings):
    own = {k: v for k, v in settings.items() if k not in ("kind", "good_value")}
    return PairsConfig(
        **own,
        good_value_safety=settings["good_value"],
        good_value_helpfulness=settings["good_value"],
        max_tokens=10**9,
        max_per_prompt=0,
        max_responses_per_prompt=0,
    )


def load_tree(path):
    data = json.loads(path.read_text())
    nodes = {tag: {"prompt": data["prompt"], **node} for tag, node in data["nodes"].items()}
    return from_official(nodes, id=path.name, type=data["type"])


def rows_equal(got, want):
    """Compares rows of texts and numbers as multisets, the numbers within TOLERANCE."""
    if len(got) != len(want):
        return False
    return all(
        a == b if isinstance(b, str) else abs(a - b) <= TOLERANCE
        for mine, theirs in zip(sorted(map(tuple, got)), sorted(map(tuple, want)), strict=True)
        for a, b in zip(mine, theirs, strict=True)
    )


def check(case, tree):
    """Returns what is wrong with the rows made for a case, a line each."""
    config, wrong = pairs_config(case["settings"]), []
    if case["settings"]["kind"] == "sft":
        rows, _ = responses_of(tree, config, prompt_tokens=0)
        if not rows_equal([(r.text, r.value) for r in rows], case["responses"]):
            wrong.append("responses differ")
    else:
        rows, _ = pairs_of(tree, config, prompt_tokens=0, seed=0)
        wrong += _check_pairs(case, tree, config, rows)
    if len(rows) != case["count"]:
        wrong.append(f"{len(rows)} rows, expected {case['count']}")
    return wrong


def _check_pairs(case, tree, config, rows):
    if "pairs" in case:
        got = [(r.chosen_text, r.rejected_text, r.chosen_value, r.rejected_value) for r in rows]
        return [] if rows_equal(got, case["pairs"]) else ["pairs differ"]
    wrong = []
    used = [r.chosen_text for r in rows], [r.rejected_text for r in rows]
    for name, nodes, texts in zip(("good", "bad"), good_and_bad(tree, config), used, strict=True):
        sides = ["".join(step.text for step in tree.path(i)) for i in nodes]
        if collections.Counter(sides) != collections.Counter(case[name]):
            wrong.append(f"the {name} side differs")
        if not set(texts) <= set(case[name]):
            wrong.append(f"pairs use nodes that are not {name}")
    return wrong


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=pathlib.Path)
    parser.add_argument("dir", type=pathlib.Path)
    args = parser.parse_args(argv)
    cases, failed = json.loads(args.file.read_text()), 0
    for number, case in enumerate(cases):
        wrong = check(case, load_tree(args.dir / case["tree"]))
        failed += bool(wrong)
        for line in wrong:
            print(f"case {number} ({case['tree']}, {case['settings']}): {line}")
    print(f"{len(cases) - failed} passed, {failed} failed")
    return 2 if not cases else min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
