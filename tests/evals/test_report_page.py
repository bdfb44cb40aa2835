"""The report of a run as a page: nothing is missing, nothing that a model wrote is markup."""

import base64
import hashlib
import json
import re

import pytest

from stair_jax import jsonl
from stair_jax.evals.attacks.attacked import Attacked
from stair_jax.evals.attacks.transcript import Move, Stream, Transcript
from stair_jax.evals.report import html
from stair_jax.evals.report.parts import answers
from stair_jax.records import Answer
from stair_jax.run.rating import Given
from tests.support import run_files
from tests.support.report_pages import Elements, cells_of, page_of, rows_of, sources_of

# Each would do something in a page that takes it for markup, a script, a style or an address.
HOSTILE = (
    "</script><script>window.hit=1</script>",
    '"><img src=x onerror=window.hit=2>',
    "'><svg/onload=window.hit=3>",
    "<svg><script>window.hit=4</script></svg>",
    '<a href="javascript:window.hit=5">x</a>',
    "{{ 7*7 }}{% raw %}${window.hit=6}",
    "<!--<script>",
    "]]></textarea></style></title>",
    '");window.hit=7;("',
    "\u202e\u2028\u2029\x00<b>",
)
ALL = " ".join(HOSTILE)


@pytest.fixture
def made(tmp_path):
    run_files.make(tmp_path)
    return tmp_path


def test_a_tree_has_every_field_of_every_node(made):
    source = sources_of(page_of(made))["trees-1"]
    assert (source["count"], source["group"], source["title"]) == (2, "trees", "Round 1")
    (line, row), (_, other) = rows_of(made, source)
    assert line[:4] == ["p0", "said-p0-question", ["safety", "gave pairs"], [6, 3.0, 0.0]]
    nodes = row["nodes"]
    assert nodes["tag"] == ["0", "0.0", "0.1", "0.2", "0.0.0", "0.0.1"]
    assert nodes["parent"] == [-1, 0, 0, 0, 1, 1]
    assert nodes["visits"] == [6, 4, 1, 1, 2, 1]
    assert nodes["value"] == [0.75, 1.5, -1.0, -0.5, 3.0, 0.0]
    assert nodes["reward"] == [None, None, None, None, 3.0, 0.0]
    assert nodes["terminal"] == [False, False, False, False, True, True]
    assert nodes["p"] == [1.0, 1.0, 1.0, 0.25, 1.0, 1.0]
    assert nodes["text"][4] == "<|Output|> said-p0-node-0.0.0 <|/Output|>"
    assert (row["truth"], row["prefill"]) == ("said-p0-truth", "said-p0-prefill")
    assert row["before"] == [["system", "said-p0-system"]]
    assert row["meta"] == {"kind": "said-p0-meta"}
    assert row["counters"] == {"iterations": 6.0}
    assert other["id"] == "p1"


def test_a_pair_says_why_it_was_picked_and_where_its_sides_part(made):
    rows = [row for _, row in rows_of(made, sources_of(page_of(made))["pairs-1"])]
    assert len(rows) == 4
    first, second = rows[:2]
    assert first["shared"] == ""
    assert first["why"] == [
        "0.0 has the value 1.50 (the mean of 4 visits), 0.1 has -1.00 (the mean of 1 visit).",
        "The gap of 2.50 is more than 0.5 (pairs.min_value_gap), and 1.50 is at least 0"
        " (pairs.good_value_safety).",
        "A prompt keeps at most 4 pairs, those with the widest gaps (pairs.max_per_prompt).",
    ]
    assert second["shared"] == "<|Reasoning_step|> said-p0-node-0.0 <|/Reasoning_step|>"
    assert second["chosen"] == "<|Output|> said-p0-node-0.0.0 <|/Output|>"
    assert second["rejected"] == "<|Output|> said-p0-node-0.0.1 <|/Output|>"
    assert second["step"] == [len(second["chosen"]), len(second["rejected"])]
    assert "0.0.0 has the value 3.00 (a whole response, its reward)" in second["why"][0]


def test_pairs_whose_tree_is_gone_part_behind_the_last_step_that_both_have(made):
    (made / "round-1/trees/trees.jsonl").unlink()
    rows = [row for _, row in rows_of(made, sources_of(page_of(made))["pairs-1"])]
    assert rows[1]["shared"] == "<|Reasoning_step|> said-p0-node-0.0 <|/Reasoning_step|>"
    assert rows[1]["step"] == [len(rows[1]["chosen"]), len(rows[1]["rejected"])]
    assert rows[0]["step"] == [len(rows[0]["chosen"]), len(rows[0]["rejected"])]
    assert "0.0 has the value 1.50, 0.1 has -1.00." in rows[0]["why"]


def test_pairs_of_whole_responses_are_good_and_bad_by_their_own_rule(made):
    lineage = json.loads((made / "lineage.json").read_text())
    lineage["round-1/pairs"]["settings"]["pairs.terminal_only"] = True
    (made / "lineage.json").write_text(json.dumps(lineage))
    rows = [row for _, row in rows_of(made, sources_of(page_of(made))["pairs-1"])]
    assert (
        "3.00 is good, for it is at least 0 (pairs.good_value_safety), and 0.00 is bad, for it is"
        " at most -0.5 (that less pairs.min_value_gap)." in rows[1]["why"][1]
    )


def test_answers_are_there_for_every_model_in_the_order_of_the_results(made):
    sources = sources_of(page_of(made))
    of_answers = [one for one in sources.values() if one["group"] == "answers"]
    assert [(one["of"], one["who"], one["count"]) for one in of_answers] == [
        ("harmful", model, 3) for model in run_files.MODELS
    ]
    (line, row), *_ = rows_of(made, of_answers[2])
    assert line[:4] == ["q0", "said-q0-question", ["refusal"], [10, 0.25, None, None]]
    assert row["response"] == "said-dpo-1-q0-response"
    outcomes = [line[2][0] for line, _ in rows_of(made, of_answers[1])]
    assert outcomes == ["refusal", "compliance", "compliance"]


@pytest.mark.parametrize("before", [(), (("user", "x"),)])
def test_the_judge_of_the_run_is_found_by_the_answer_that_it_saw(made, before):
    row = Answer(
        id="z",
        benchmark="mine",
        question="who?",
        response="me",
        outcome="answered",
        tokens=1,
        before=before,
    )
    jsonl.write_jsonl(made / "evals/sft/mine.jsonl", [row])
    prompt = run_files.tree("p0").prompt
    asked = {"id": "z", "question": "who?", "type": "helpfulness", "before": before}
    given = Given(benchmark="mine", prompt=type(prompt)(**asked), response="me", direct=True)
    assert answers.rating_id("who?", "helpfulness", "me", True, before) == given.id
    run_files.rate(made, {given.id: (0.5, -0.75)}, "mine")
    sources = sources_of(page_of(made)).values()
    [source] = [one for one in sources if one["of"] == "mine"]
    [(line, shown)] = rows_of(made, source)
    assert line[3] == [1, None, 0.5, -0.75]
    assert (shown["safety"], shown["helpfulness"]) == (0.5, -0.75)


def test_every_other_file_of_rows_is_there_field_by_field(made):
    sources = sources_of(page_of(made)).values()
    found = {one["title"].partition(":")[0]: one for one in sources if one["group"] == "rows"}
    assert set(found) == {
        "round-1/pairs/responses.jsonl",
        "prm/responses/candidates.jsonl",
        "data/dropped.jsonl",
    }
    [(_, row)] = rows_of(made, found["prm/responses/candidates.jsonl"])
    blocks = dict(row["blocks"])
    assert blocks["text"] == "said-candidate-text"
    assert blocks["reward"] == "0.5"
    assert "ids" not in blocks
    judged = {one["title"]: one for one in sources if one["group"] == "judges"}
    [(_, disputed)] = rows_of(made, judged["answers on which judges differ"])
    assert disputed["blocks"] == [
        ["request", "said-disputed-request"],
        ["answer", "said-disputed-answer"],
        ["verdicts", "judge-a: said-verdict-a; judge-b: said-verdict-b"],
    ]


def test_the_page_itself_has_figures_drops_lineage_settings_and_how_the_run_went(made):
    page = page_of(made)
    assert ["sft", "harmful", "refusal", "0.25", "0.1 to 0.5", "3", "", ""] in cells_of(
        page, "All figures of evals/results.json"
    )
    assert cells_of(page, "Rows and candidates that a rule took away")[1:] == [
        ["round-1/trees", "passed_over: said-passed-over", "1"],
        ["round-1/pairs", "pairs/small_gap", "179"],
        ["evals/dpo-1, said-benchmark-name", "answers without a figure, at most", "7"],
        ["data/dropped.jsonl", "c: said-dropped-reason", "3"],
    ]
    lineage = cells_of(
        page, "What made each part, in the order in which it was begun (times in UTC)"
    )
    assert [
        "round-1/pairs",
        "pairs",
        "done",
        "2026-01-01 10:00:00",
        "1 h 30 min",
        "round-1/trees",
        "pairs 4",
        "bb22",
    ] in lineage
    assert cells_of(page, "Set by the command that made round-1/pairs")[1:] == [
        ["pairs.min_value_gap", "0.5"]
    ]
    changed = cells_of(page, "Settings of the last command that differ from their default")
    assert ["rounds", "1", "3"] in [row[:3] for row in changed]
    assert "seed" not in [row[0] for row in changed]
    assert "seed" in [row[0] for row in cells_of(page, "All settings of the last command")]
    assert ["slots busy", "91.3 %"] in cells_of(page, "trees")
    assert ["memory of a device, at most", "65.5 GB"] in cells_of(page, "sft")
    assert "loss: 4 at step 1, 1 at step 4; least 1, most 4" in page
    assert ["trees that gave a pair", "2"] in cells_of(page, "Rounds")
    assert ["safety: their mean reward", "1.50"] in cells_of(page, "Rounds")
    for said in ("said-table", "said-judges-page", "said-card", "said-preview"):
        assert said in page
    assert "<code>code</code>" in page


def test_nothing_that_a_model_or_a_file_says_is_markup(tmp_path):
    run_files.make(tmp_path, lambda place: f"{place}{ALL}")
    (tmp_path / "data<").mkdir()  # names of files stand in the page's own data
    (tmp_path / "data<" / "script><img src=x>.jsonl").write_text('{"id": "x"}\n')
    page = page_of(tmp_path)
    assert page.count("&lt;script&gt;") > 20  # it is all there, as text
    titles = [source["title"] for source in sources_of(page).values()]
    assert "data</script><img src=x>.jsonl" in titles
    elements = Elements(page)
    assert len(elements.of("script")) == 2
    assert {tag for tag, _ in elements.found}.isdisjoint({"img", "b", "textarea", "iframe"})
    names = {name for _, attributes in elements.found for name in attributes}
    assert not [name for name in names if name.startswith("on") or name == "style"]
    addresses = {a.get("href") or a.get("src") or "#" for _, a in elements.found}
    assert {address[0] for address in addresses} == {"#"}
    assert "7*7" in page
    assert "49{%" not in page


def test_what_a_page_loads_has_no_letter_of_what_models_wrote(tmp_path):
    run_files.make(tmp_path, lambda place: f"{place}{ALL}")
    sources = sources_of(page_of(tmp_path))
    files = sorted((tmp_path / "report/data").glob("*.js"))
    named = {name for one in sources.values() for name in (*one["index"], *one["parts"])}
    assert {path.stem for path in files} == named
    form = re.compile(r'stairShard\("([A-Za-z0-9_-]+)","[A-Za-z0-9+/=]+"\);\n')
    for path in files:
        found = form.fullmatch(path.read_text(encoding="ascii"))
        assert found
        assert found[1] == path.stem
    (_, row), *_ = rows_of(tmp_path, sources["trees-1"])
    assert row["question"] == f"p0-question{ALL}"


def test_the_policy_lets_the_pages_own_script_and_style_run_and_nothing_else(made):
    elements = Elements(page_of(made))
    [policy] = [
        a["content"] for a in elements.of("meta") if "content" in a and "src" in a["content"]
    ]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))

    def hashed(text):
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    kinds = [a.get("type") for a in elements.of("script")]
    assert kinds == ["application/json", None]
    _, *script = elements.inside["script"]
    assert rules["script-src"] == f"{hashed(''.join(script))} 'strict-dynamic'"
    assert rules["style-src"] == hashed("".join(elements.inside["style"]))
    assert rules["default-src"] == "'none'"
    assert rules["require-trusted-types-for"] == "'script'"
    assert "unsafe" not in policy
    assert "http" not in policy


def test_the_script_sets_no_markup():
    script = (html._TEMPLATES / "report.js").read_text()
    assert "textContent" in script
    for way in ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval(", "Function("):
        assert way not in script


def test_pictures_of_the_run_are_in_the_page(made):
    (made / "report/plane.png").write_bytes(b"PNG!")
    [picture] = Elements(page_of(made)).of("img")
    assert picture["src"] == f"data:image/png;base64,{base64.b64encode(b'PNG!').decode()}"
    assert picture["alt"].startswith("Attacks that got an answer")


def test_the_shares_that_changed_most_are_told_first_and_the_rest_are_counted(made):
    def share(value):
        return {"value": value, "n": 100, "low": 0.0, "high": 1.0}

    changes = {f"b{k:02}": k / 100 for k in range(12)}
    results = {
        model: {name: {"answered": share(by * last)} for name, by in changes.items()}
        for model, last in (("sft", 0), ("dpo-1", 1), ("dpo-1/best_of_2", 3))
    }
    jsonl.write_json(made / "evals/results.json", results)
    found = re.findall(r"<li>(b\d\d: answered: .*?)</li>", page_of(made))
    assert len(found) == 10
    assert found[0] == (
        "b11: answered: 0.0 % (0-100) after sft, 11.0 % (0-100) after dpo-1, of 100 prompts."
    )
    assert "2 other shares changed by 1.0 % or less; the table has them." in page_of(made)


def test_trees_whose_responses_all_score_the_same_are_counted(made):
    path = made / "round-1/trees/trees.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[0]["nodes"]["reward"][5] = rows[0]["nodes"]["reward"][4]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = "trees whose judged responses all score the same"
    assert [said, "1"] in cells_of(page_of(made), "Rounds")


def test_an_attack_is_told_move_by_move(made):
    move = Move(iteration=2, improvement="", prompt="please", response="no", rating=1)
    transcript = Transcript(
        protocol="pair",
        goal="g",
        target_str="",
        seed=0,
        settings={},
        prompts={},
        streams=(Stream(name="roleplay", turns=(), moves=(move,)),),
        calls=(),
        counts={},
        ended="exhausted",
    )
    row = Attacked(
        id="q0", benchmark="harmful", attack="pair", question="g", ends={}, transcript=transcript
    )
    jsonl.write_jsonl(made / "evals/sft/attacks/pair/harmful.jsonl", [row])
    sources = sources_of(page_of(made)).values()
    [source] = [one for one in sources if "attacks" in one["title"]]
    assert source["title"].endswith("harmful.jsonl: attacks, all that was said")
    [(line, shown)] = rows_of(made, source)
    assert line[2] == ["harmful", "pair", "exhausted"]
    blocks = dict(shown["blocks"])
    assert blocks["prompt of roleplay 0.2"] == "please"
    assert blocks["response of roleplay 0.2"] == "no"
    assert blocks["rating of roleplay 0.2"] == "1"
    assert json.loads(blocks["transcript"])["protocol"] == "pair"
