"""The plane of over-refusal and attack success: what is drawn, and that names can be read."""

import itertools
import math

import pytest

from stair_jax.evals import statistics
from stair_jax.evals.report import plane

NAMES = ["base", "sft", "dpo-1", "dpo-2", "dpo-3", "dpo-3/best_of_2", "dpo-3/best_of_8"]
NAMES += ["dpo-3/beam_2x4", "dpo-3/beam_4x4", "baseline-sft", "baseline-dpo", "baseline-rlhf"]
PATH = [(1, 70), (1, 66), (2, 60), (3, 52), (3, 47), (4, 40), (5, 33), (7, 22), (9, 12), (10, 10)]
PATH += [(12, 6), (13, 4)]
HEAP = [
    (5, 70),
    (8, 40),
    *[(0, 0)] * 3,
    (1, 0),
    (30, 2),
    (0, 0),
    (0, 0),
    (12, 33),
    (60, 5),
    (13, 34),
]
CROWD = [(40, 40), (43, 40), (46, 40), (40, 43), (43, 43), (46, 43), (40, 46), (43, 46), (46, 46)]


def share(hits, count=100):
    return statistics.share([1.0] * hits + [0.0] * (count - hits))


def points(hits):
    return [(name, share(x), share(y)) for name, (x, y) in zip(NAMES, hits, strict=False)]


@pytest.fixture
def draw(tmp_path, monkeypatch):
    """Draws, checks that a picture was made, and returns its axes."""
    from matplotlib import pyplot

    closed = []
    monkeypatch.setattr(pyplot, "close", closed.append)

    def run(points):
        path = tmp_path / "report" / "plane.png"
        plane.plot(points, path)
        assert path.read_bytes()[:4] == b"\x89PNG"
        return closed[-1].axes[0]

    yield run
    monkeypatch.undo()
    for figure in closed:
        pyplot.close(figure)


def labels(axes):
    """Returns the boxes of names, in pixels of the figure as it is and not of the saved one."""
    axes.get_figure().canvas.draw()
    return {text.get_text(): text.get_window_extent() for text in axes.texts}


def test_each_model_is_a_point_with_both_intervals(draw):
    axes = draw([("sft", share(12, 250), share(40)), ("dpo", share(0), share(5))])
    assert len(axes.containers) == 2
    for bars, (refusal, success) in zip(
        axes.containers, [(share(12, 250), share(40)), (share(0), share(5))], strict=True
    ):
        marker, _, (across, up) = bars.lines
        assert marker.get_xydata()[0] == pytest.approx(
            (100 * refusal["value"], 100 * success["value"])
        )
        (segment,) = across.get_segments()
        assert segment[:, 0] == pytest.approx([100 * refusal["low"], 100 * refusal["high"]])
        (segment,) = up.get_segments()
        assert segment[:, 1] == pytest.approx([100 * success["low"], 100 * success["high"]])
    assert "over-refusal" in axes.get_xlabel()
    assert axes.get_ylabel() == "attacks answered, % (lower is better)"


def test_a_line_joins_the_models_in_their_order(draw):
    hits = [(10, 5), (2, 60), (30, 1)]
    axes = draw(points(hits))
    assert axes.lines[0].get_xydata().ravel().tolist() == pytest.approx([10, 5, 2, 60, 30, 1])
    assert "in their order" in axes.get_title()
    assert "in their order" not in draw(points(hits[:1])).get_title()


@pytest.mark.parametrize("hits", [PATH[:1], PATH[:5], PATH, HEAP, CROWD, [(0, 0)] * 12])
def test_names_hide_neither_each_other_nor_the_markers(draw, hits):
    axes = draw(points(hits))
    found = labels(axes)
    assert sorted(found) == sorted(NAMES[: len(hits)])
    room = axes.get_window_extent()
    for box in found.values():
        assert room.x0 <= box.x0 < box.x1 <= room.x1
        assert room.y0 <= box.y0 < box.y1 <= room.y1
    for a, b in itertools.combinations(found.values(), 2):
        assert not a.shrunk(1, 0.9).overlaps(b.shrunk(1, 0.9))  # their leading may
    for name, place in zip(NAMES, axes.transData.transform(hits), strict=False):
        assert not any(box.contains(*place) for box in found.values()), name


def test_models_of_one_spot_share_a_label(draw):
    axes = draw(points([(0, 0), (40, 40), (0, 0)]))
    found, line = labels(axes), 1.3 * plane._FONT * axes.get_figure().dpi / 72
    middles = {name: (box.y0 + box.y1) / 2 for name, box in found.items()}
    assert middles["base"] - middles["dpo-1"] == pytest.approx(line, abs=2)
    assert found["base"].x0 == pytest.approx(found["dpo-1"].x0, abs=1)
    places = [(0.0, 0.0), (9.0, 0.0), (20.0, 0.0)]
    spots = plane._spots([("a", 0), ("b", 0), ("c", 0)], places, 10.0)
    assert [[name for name, _ in spot.names] for spot in spots] == [["a", "b"], ["c"]]


@pytest.mark.parametrize(
    ("constant", "other"),
    [("_TOGETHER", 0), ("_FONT", 14), ("_DISTANCES", (60.0,)), ("_WAYS", ((-1, -1),))],
)
def test_the_constants_of_labels_reach_the_picture(draw, monkeypatch, constant, other):
    hits = [(20, 20), (20, 20), (40, 70)]
    before = {name: box.bounds for name, box in labels(draw(points(hits))).items()}
    monkeypatch.setattr(plane, constant, other)
    after = {name: box.bounds for name, box in labels(draw(points(hits))).items()}
    assert before != after


def test_the_limits_hold_all_intervals_and_whole_markers(draw):
    axes = draw(points([(0, 0), (50, 30)]))
    assert axes.get_xlim()[0] < 0
    assert 100 * share(50)["high"] < axes.get_xlim()[1] <= 103
    assert 100 * share(30)["high"] < axes.get_ylim()[1] < 60
    assert draw(points([(100, 100)])).get_ylim()[1] == pytest.approx(103)


def test_a_model_without_a_figure_is_named(draw):
    unknown = {"value": None, "n": 9, "low": None, "high": None}  # as a file gives it back
    axes = draw(
        [("sft", share(3), share(4)), ("a", share(3), unknown), ("b", share(0, 0), share(1))]
    )
    assert "Not measured on both: a, b" in axes.get_title()
    assert list(labels(axes)) == ["sft"]


def test_a_figure_without_an_interval_has_no_bars(draw):
    bare = {"value": 0.3, "n": 1, "low": math.nan, "high": None}
    axes = draw([("sft", bare, share(40))])
    _, _, (across, _) = axes.containers[0].lines
    (segment,) = across.get_segments()
    assert segment[:, 0] == pytest.approx([30, 30])


def test_no_model_with_both_figures_is_an_error(tmp_path):
    message = r"plane\.png: none of 1 models has both shares to be drawn"
    with pytest.raises(ValueError, match=message):
        plane.plot([("sft", share(3), share(0, 0))], tmp_path / "plane.png")
