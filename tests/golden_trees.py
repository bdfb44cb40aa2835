"""Grows the golden trees with the product's own search: `python -m tests.golden_trees DIR`.

The scripted functions of tests/golden/ stand behind the interfaces of engine and judge; driver,
tree and search are the product's. Ends with `N passed, M failed`; exit 1 on a difference, 2 when
DIR holds no case.
"""

import argparse
import json
import pathlib
import sys

from stair_jax.config.schema import RewardConfig, SearchConfig
from stair_jax.records import Prompt
from stair_jax.search.driver import grow
from stair_jax.search.reward import Reward
from tests.golden import scripted_policy
from tests.support.scripted import ScriptedCodec, ScriptedEngine, ScriptedJudge

ROOM = 10_000  # tokens of a step or rollout: the script decides where they end
COMPANY = 3  # trees of other cases that grow beside a case's own, to be in its way
TOLERANCE = 1e-4
_REWARD = ("reward", "k1", "k2")


def search_config(settings, in_flight):
    own = {k: v for k, v in settings.items() if k not in ("k1", "k2")}
    own["score"] = own["score"].lower()
    return SearchConfig(
        **own,
        prior="arithmetic",
        ties="first",
        max_step_tokens=ROOM,
        max_rollout_tokens=ROOM,
        temperature=1.2,
        top_p=0.9,
        top_k=50,
        trees_in_flight=in_flight,
        export_official=False,
    )


def reward_of(settings):
    constants = RewardConfig(F="identity", c1=1.0, c2=-1.0, k1=settings["k1"], k2=settings["k2"])
    return Reward(settings["reward"], constants)


def grow_cases(cases, in_flight, *, script=scripted_policy, seed=0):
    """Returns the grown tree of each case, by name; cases with equal settings grow together."""
    groups = {}
    for name, case in cases.items():
        groups.setdefault(json.dumps(case["search"], sort_keys=True), []).append(name)
    trees = {}
    for settings, names in groups.items():
        others = [name for name in cases if name not in names][:COMPANY]
        prompts = [
            Prompt(id=name, question=cases[name]["prompt"], type=cases[name]["type"])
            for name in (*others, *names)
        ]
        codec, grown = ScriptedCodec(), {}
        grow(
            prompts,
            engine=ScriptedEngine(script, codec, seed=seed),
            judge=ScriptedJudge(script, seed=seed),
            codec=codec,
            config=search_config(json.loads(settings), in_flight),
            reward=reward_of(json.loads(settings)),
            seed=seed,
            on_tree=lambda tree, grown=grown: grown.update({tree.prompt.id: tree}),
        )
        trees |= {name: grown[name] for name in names}
    return trees


def differences(case, tree):
    """Returns what is wrong with a grown tree, a line each."""
    want, wrong = case["nodes"], []
    got = {node.tag: (i, node) for i, node in enumerate(tree.nodes)}
    if len(got) != len(tree.nodes) or case.get("tree_size", len(want)) != len(tree.nodes):
        wrong.append(f"tree_size {len(tree.nodes)}, expected {case.get('tree_size', len(want))}")
    if got.keys() != want.keys():
        wrong.append(f"tags differ: {sorted(got.keys() ^ want.keys())[:5]}")
    for tag in got.keys() & want.keys():
        index, node = got[tag]
        exact = {
            "trajectory": [step.text for step in tree.path(index)],
            "is_terminal": node.terminal,
            "depth": node.depth,
            "visited_times": node.visits,
        }
        close = {"value_sum": node.value_sum, "reward": node.reward, "p": node.p}
        wrong += [
            f"{tag}.{key} {value!r}, expected {want[tag][key]!r}"
            for key, value in exact.items()
            if value != want[tag][key]
        ]
        wrong += [
            f"{tag}.{key} {value!r}, expected {want[tag][key]!r}"
            for key, value in close.items()
            if not _near(value, want[tag][key])
        ]
    return wrong


def _near(a, b):
    return a == b if a is None or b is None else abs(a - b) <= TOLERANCE


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dir", type=pathlib.Path)
    parser.add_argument("--in-flight", type=int, default=5, help="trees grown at once")
    args = parser.parse_args(argv)
    if args.in_flight < 1:
        parser.error(f"--in-flight: {args.in_flight} found, 1 or more expected")
    cases = {path.name: json.loads(path.read_text()) for path in sorted(args.dir.glob("*.json"))}
    trees, failed = grow_cases(cases, args.in_flight), 0
    for name, case in cases.items():
        wrong = differences(case, trees[name])
        failed += bool(wrong)
        for line in wrong[:5]:
            print(f"{name}: {line}")
    print(f"{len(cases) - failed} passed, {failed} failed")
    return 2 if not cases else min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
