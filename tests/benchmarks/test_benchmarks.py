"""The benchmarks' own parts: figures, claims, tables, bounds."""

import dataclasses
import itertools
import json
import math
import pathlib

import jax
import numpy as np
import pytest

from benchmarks import engine_roofline, growing, harness, host, miniature, random_search, roofline
from benchmarks.growing import Grown
from benchmarks.harness import Claim
from benchmarks.random_search import Shape
from stair_jax import config as config_lib
from stair_jax.config.schema import RewardConfig
from stair_jax.engine.request import Prefix, Result
from stair_jax.judges.base import FunctionJudge, Score
from stair_jax.records import Node, Prompt, Tree
from tests.support import specs

# Harness


@pytest.mark.parametrize(
    ("value", "op", "target", "holds"),
    [
        (3.0, ">=", 3, True),
        (2.9, ">=", 3, False),
        (1.05, "<=", 1.05, True),
        (1.06, "<=", 1.05, False),
        (0.0, "==", 0, True),
        (1.0, "==", 0, False),
    ],
)
def test_a_claim_is_held_to_its_target(value, op, target, holds):
    assert Claim(value, op, target).holds is holds


def rounds(**sides):
    return [
        {side: {"speed": speed} for side, speed in zip(sides, speeds, strict=True)}
        for speeds in zip(*sides.values(), strict=True)
    ]


def test_a_ratio_is_the_median_of_the_rounds_own_ratios():
    measured = rounds(ours=[10.0, 20.0, 60.0], theirs=[1.0, 10.0, 10.0])
    assert harness.ratio(measured, "speed", "ours", "theirs") == 6.0  # of 10, 2, 6
    assert harness.median(measured, "ours", "speed") == 20.0
    assert harness.median(measured, "theirs", "speed") == 10.0


def test_sides_take_turns():
    seen = []

    def side(name):
        def measure(turn):
            seen.append((name, turn))
            return {"n": float(len(seen))}

        return measure

    sides = {name: side(name) for name in ("a", "b", "c")}
    measured = harness.alternate(sides, 2)
    assert seen == [("a", 0), ("b", 0), ("c", 0), ("a", 1), ("b", 1), ("c", 1)]
    assert [one["b"]["n"] for one in measured] == [2, 5]


def test_no_round_is_begun_that_the_time_does_not_allow():
    assert len(harness.alternate({"a": lambda _: {}}, 5, seconds=0)) == 1
    assert len(harness.alternate({"a": lambda _: {}}, 5, seconds=60)) == 5


def test_what_was_disturbed_is_measured_once_more():
    runs = iter([0.4, 0.3, 0.01, 0.2, 0.9])

    def measure(_):
        return {"others": next(runs)}

    found = harness.alternate({"a": measure}, 3)
    assert [one["a"]["others"] for one in found] == [0.3, 0.01, 0.2]
    late = iter([0.4, 0.3])
    found = harness.alternate({"a": lambda _: {"others": next(late)}}, 1, seconds=0)
    assert [one["a"]["others"] for one in found] == [0.4]


def test_other_processes_work_is_seen(tmp_path, monkeypatch):
    stat, own = tmp_path / "stat", iter([0.0, 5.0])
    monkeypatch.setattr(harness, "_STAT", stat)
    monkeypatch.setattr(harness.time, "process_time", lambda: next(own))
    monkeypatch.setattr(harness.time, "perf_counter", itertools.count(0, 10).__next__)
    monkeypatch.setattr(harness.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(harness.os, "sysconf", lambda _: 100)
    stat.write_text("cpu 100 0 0 999 99 0 0 0 0 0\n")
    with harness.Watch() as watch:
        stat.write_text("cpu 500 100 200 9999 99 0 0 100 0 0\n")
    assert watch.seconds == 10
    assert watch.others == pytest.approx((8 - 5) / 20)  # 8 s of work, 5 of them our own


def test_a_system_that_does_not_say_counts_as_quiet(tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "_STAT", tmp_path / "none")
    with harness.Watch() as watch:
        pass
    assert watch.others == 0.0


def test_the_file_has_every_figure_and_the_claims(tmp_path):
    out = tmp_path / "o.json"
    harness.write(out, {"rounds": [{"a": {"x": 1.5}}]}, {"fast": Claim(2.0, ">=", 3)})
    claim = {"value": 2.0, "target": 3, "op": ">=", "holds": False}
    assert json.loads(out.read_text()) == {"rounds": [{"a": {"x": 1.5}}], "claims": {"fast": claim}}


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_number_is_not_written(tmp_path, value):
    with pytest.raises(ValueError, match="not JSON compliant"):
        harness.write(tmp_path / "o.json", {"x": value}, {})
    assert not (tmp_path / "o.json").exists()


@pytest.mark.parametrize(
    ("out", "message"), [("", "is a folder"), ("none/o.json", "there is no folder")]
)
def test_a_file_that_cannot_be_written_is_refused_at_once(tmp_path, capsys, out, message):
    with pytest.raises(SystemExit) as end:
        harness.parse(harness.parser_of("A benchmark."), ["--out", str(tmp_path / out)])
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_the_machine_is_told_without_its_name():
    facts = harness.machine("einops")
    assert facts["versions"]["jax"] == jax.__version__
    assert facts["versions"].keys() == {"jax", "jaxlib", "numpy", "einops"}
    assert facts["device_kind"] == "cpu"
    assert facts["devices"] == len(jax.devices())
    assert facts.keys() == {"cpus", "architecture", "python", "device_kind", "devices", "versions"}


def test_columns_of_a_table_line_up():
    lines = harness.table("T", ("name", "x"), [("a", 12345.6), ("long name", None)]).splitlines()
    assert lines[1:] == [
        "T",
        "name            x",
        "---------  ------",
        "a          12,346",
        "long name        ",
    ]


# What is made of a run

SHAPE = Shape(trees=3, in_flight=2, iterations=4, prompt=9, step=4, rollout=6)


class Letters:
    """A codec whose texts are the ids."""

    end_stop = frozenset({2})

    def prompt_ids(self, question, before=()):
        return [int(question)]

    def decode(self, ids):
        return str(ids)


def tree(tokens, nodes=2):
    node = Node(
        parent=-1,
        ids=(),
        text="",
        depth=0,
        visits=1,
        value_sum=0.0,
        reward=None,
        terminal=False,
        p=1.0,
        tag="0",
    )
    prompt = Prompt(id="p", question="q", type="safety")
    return Tree(prompt=prompt, nodes=(node,) * nodes, counters={"tokens": float(tokens)})


def grown():
    counters = {
        "delivered": 300,
        "decoded": 320,
        "prefilled": 40,
        "reused": 160,
        "host_s": 2.0,
        "device_s": 8.0,
        "compiles": 3,
    }
    dry = {"delivered": 200, "busy_slots": 90, "idle_slots": 20, "overshoot": 10, "seconds": 5.0}
    return Grown([tree(100), tree(200, nodes=4)], 10.0, 0.25, counters, dry, most=2)


def test_speeds_are_per_hour_and_per_tree():
    found = growing.speeds(grown())
    expected = {
        "trees": 2,
        "trees_per_hour": 720,
        "tokens_per_s": 30,
        "tokens_per_tree": 150,
        "nodes_per_tree": 3,
        "decoded_per_tree": 160,
        "prefilled_per_tree": 20,
        "others": 0.25,
        "seconds": 10,
        "most_in_flight": 2,
    }
    assert found == expected


def test_what_is_computed_is_held_against_prompts_and_answers():
    found = growing.engine_figures(grown(), prompt_tokens=60)
    assert found["computed_per_unique_token"] == 1.0  # (320 + 40) / (60 + 300)
    assert found["busy_slots"] == 0.75
    assert found["reuse_ratio"] == 0.8
    assert found["dry_at"] == 0.5
    assert (found["host_share"], found["recompiles"]) == (0.2, 3)
    assert found["trees_per_hour_until_dry"] == pytest.approx(3600 * 40 / 150)
    assert found["engine/decoded"] == 320


class Instant:
    """An engine whose answers are there at once: a single token that ends everything."""

    hungry = idle = True

    def __init__(self):
        self.counters = {"delivered": 100, "pages_high_water": 50}
        self._done = []

    def root(self, ids):
        return Prefix(ids)

    def submit(self, request):
        self.counters["delivered"] += 1
        ids = (*request.prefix.ids, 2)
        self._done.append(
            Result(id=request.id, ids=(2,), logps=(0.0,), prefix=Prefix(ids), finish="stop")
        )

    def step(self):
        raise AssertionError("nothing is ever queued")

    def collect(self):
        done, self._done = self._done, []
        return done

    def extend(self, prefix, ids):
        return Prefix((*prefix.ids, *ids))

    def release(self, prefix):
        self.counters["pages_high_water"] = 60

    def cancel(self, request_id):
        raise AssertionError("nothing is cancelled")


def grow(prompts, engine):
    return growing.grow(
        prompts,
        engine,
        codec=Letters(),
        config=random_search.search_config(SHAPE),
        seed=0,
        judge=FunctionJudge(lambda *_: Score(safety=1.0, helpfulness=1.0)),
        reward=RewardConfig.of(config_lib.default().reward),
    )


def test_counters_are_those_of_the_run_and_gauges_are_as_they_stand():
    found = grow([Prompt(id=f"{i}", question="9", type="safety") for i in range(3)], Instant())
    assert len(found.trees) == 3
    tokens = sum(tree.counters["tokens"] for tree in found.trees)
    assert 0 < found.counters["delivered"] == tokens
    assert found.counters["pages_high_water"] == 60
    assert found.most == 2
    assert 0 <= found.dry["seconds"] <= found.seconds


def test_a_prompt_without_room_ends_the_measurement():
    class Full(Instant):
        """An engine without room for any prompt."""

        def root(self, ids):
            raise ValueError("too long")

    with pytest.raises(RuntimeError, match=r"passed over: .*too long"):
        grow([Prompt(id="p", question="9", type="safety")], Full())


def test_joined_runs_add_up():
    both = growing.joined([grown(), dataclasses.replace(grown(), seconds=5.0, others=0.5)])
    assert (len(both.trees), both.seconds, both.others) == (4, 15.0, 0.5)
    assert both.counters["decoded"] == 640


def test_a_prompt_can_be_asked_more_than_once():
    every = [Prompt(id=f"p{i}", question=f"{i}", type="safety") for i in range(3)]
    found = miniature.repeated(every, 7)
    assert [p.question for p in found] == ["0", "1", "2", "0", "1", "2", "0"]
    assert len({p.id for p in found}) == 7
    assert found[:2] == every[:2]


def test_prompts_of_different_turns_differ_and_lie_evenly():
    numbers = list(range(23))
    parts = [miniature.spread(numbers, 5, turn, 4) for turn in range(4)]
    assert len({*itertools.chain(*parts)}) == 20
    assert all(2 <= b - a <= 7 for part in parts for a, b in itertools.pairwise(part))
    assert miniature.spread(numbers, 23, 0, 1) == numbers
    with pytest.raises(ValueError, match="24 prompts wanted, found 23"):
        miniature.spread(numbers, 24, 0, 4)


def test_a_workdir_without_the_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="has no finished sft model"):
        miniature.open_run(tmp_path)


# Rooflines

SPEC = specs.llama(L=2, D=24, N=4, K=2, H=6, F=20, V=23)


def test_the_bound_is_the_longer_of_bytes_and_arithmetic():
    limits = roofline.Ceilings(bytes_per_s=10.0, flops_per_s=100.0)
    assert limits.seconds(roofline.Cost(bytes=20.0, flops=100.0)) == 2.0
    assert limits.seconds(roofline.Cost(bytes=20.0, flops=500.0)) == 5.0


@pytest.mark.parametrize("size", roofline.SPECS)
def test_a_tokens_matrices_are_all_parameters_but_norms_and_a_table(size):
    spec = roofline.SPECS[size]
    norms = (2 * spec.L + 1) * spec.D
    table = 0 if spec.tied else spec.V * spec.D
    assert spec.matrix_parameters(head=True) == spec.parameters - norms - table


def test_costs_of_a_small_decoder_by_hand():
    # A layer: 24 x 6 x (4 + 2) x 2 + 3 x 24 x 20 = 3168; two layers; the head 24 x 23 = 552.
    assert SPEC.matrix_parameters(head=False) == 6336
    decode = roofline.decode_cost(SPEC, rows=3, context=10, itemsize=2)
    assert decode.bytes == 2 * 6888 + 2 * (2 * 2 * 2 * 6) * 3 * 10
    assert decode.flops == 2 * 6888 * 3 + 4 * 2 * 4 * 6 * 3 * 10
    extend = roofline.extend_cost(SPEC, rows=3, tokens=10, itemsize=2)
    assert extend.bytes == 2 * 6336 + 2 * (2 * 2 * 2 * 6) * 3 * 10
    assert extend.flops == 2 * 6336 * 30 + 4 * 2 * 4 * 6 * 3 * 10 * 10 / 2


@pytest.mark.slow
def test_the_roofline_is_measured_over_batches(tmp_path, capsys):
    out = tmp_path / "o.json"
    engine_roofline.main(["--out", str(out), "--most=2", "--repetitions=1"])
    found = json.loads(out.read_text())
    assert [load["rows"] for load in found["loads"]] == [1, 2]
    assert (found["left_out"], found["claims"]) == ([], {})
    for load in found["loads"]:
        assert load["decode_share"] == pytest.approx(load["decode_bound_ms"] / load["step_ms"])
        assert load["tokens_per_s"] == pytest.approx(1e3 * load["rows"] / load["step_ms"])
    assert "GB/s" in capsys.readouterr().out


def test_the_demo_and_the_benchmarks_ask_for_the_same_memory():
    demo = pathlib.Path(__file__).parents[2] / "launch" / "demo.sh"
    assert f"GLIBC_TUNABLES={harness.TUNABLES}\n" in demo.read_text()


# The host


def test_the_host_benchmark_measures_what_it_names(tmp_path, capsys):
    out = tmp_path / "host.json"
    host.main(["--out", str(out), "--tiny"])
    told = json.loads(out.read_text())
    assert set(told["searches"]) == {"14ms", "30ms"}
    for found in told["searches"].values():
        assert 0.9 < found["busy"] <= 1
        assert 0.5 < found["busy_slots"] <= 1
        assert found["decoded"] >= host.TINY.tokens
        want = found["decoded"] / found["virtual_s"]
        assert found["tokens_per_s"] == pytest.approx(want)
    assert [*told["eviction_us"]] == [str(held) for held in host.TINY.held]
    assert set(told["claims"]) == {"busy_14ms", "busy_30ms", "eviction_most_held_vs_least"}
    assert "2 devices of 6 slots" in capsys.readouterr().out


def test_a_fake_device_takes_its_time_and_draws_by_the_key_alone():
    clock = host.Clock()
    device, other = (host.FakeDevice(host.TINY, clock, step_s) for step_s in (2.0, 5.0))
    columns = dict.fromkeys(host.COLUMNS, 0) | {"limit": 99, "active": 1, "stop": 1}
    packed = np.array([list((columns | {"key0": key}).values()) for key in (3, 4, 3)], np.int32)
    table, began = np.zeros((3, 1), np.int32), clock.perf_counter()
    first, second = (d.decode(packed, table, None, None) for d in (device, other))
    np.testing.assert_array_equal(first.tokens, second.tokens)
    np.testing.assert_array_equal(first.tokens[0], first.tokens[2])
    assert (first.tokens[0] != first.tokens[1]).any()
    assert not first.steps.is_ready()
    assert np.asarray(second.steps) == host.TINY.chunk  # waits
    assert 20 <= clock.perf_counter() - began < 21  # 4 steps of 5 s
    assert first.steps.is_ready()
    assert device.busy_s == 8
