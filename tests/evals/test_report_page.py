"""The report of a run as a page: nothing is missing, nothing that a model wrote is markup."""

import base64
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from html import parser, unescape

import pytest

from stair_jax import jsonl
from stair_jax.evals.report import html
from stair_jax.evals.report.parts import answers, shards
from stair_jax.records import Answer
from stair_jax.run.rating import Given
from tests.support import run_files

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


class Elements(parser.HTMLParser):
    """Every element of a page with its attributes, and the text of scripts and styles."""

    def __init__(self, page):
        super().__init__()
        self.found, self.inside = [], {"script": [], "style": []}
        self._in = None
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        self._in = tag if tag in self.inside else None

    def handle_endtag(self, tag):
        self._in = None

    def handle_data(self, data):
        if self._in:
            self.inside[self._in].append(data)

    def of(self, tag):
        return [attributes for name, attributes in self.found if name == tag]


def page_of(workdir):
    return html.write(workdir).read_text(encoding="utf-8")


def sources_of(page):
    text = "".join(Elements(page).inside["script"][:1])
    return {source["id"]: source for source in json.loads(text)}


def rows_of(workdir, source):
    """Every row of a source: its line in the index, and what is shown when it is opened."""
    folder = workdir / "report" / "data"
    lines = [line for name in source["index"] for line in shards.read(folder / f"{name}.js")]
    parts = [shards.read(folder / f"{name}.js") for name in source["parts"]]
    return [(line, parts[line[4]][line[5]]) for line in lines]


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


def cells_of(page, caption):
    """The rows of a table of the page, as text."""
    [table] = re.findall(rf"<caption>{re.escape(caption)}</caption>(.*?)</table>", page, re.DOTALL)
    rows = re.findall(r"<tr>(.*?)</tr>", table)
    return [
        [
            unescape(re.sub(r"<[^>]*>", "", cell))
            for cell in re.findall(r"<t[hd].*?>(.*?)</t[hd]>", row)
        ]
        for row in rows
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
    page = page_of(tmp_path)
    assert page.count("&lt;script&gt;") > 20  # it is all there, as text
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


FILES = (
    "round-1/trees/trees.jsonl",
    "round-1/pairs/pairs.jsonl",
    "evals/sft/harmful.jsonl",
    "metrics.jsonl",
)


@pytest.mark.parametrize("name", FILES)
def test_a_torn_last_line_is_passed_over_and_told(made, name):
    whole = (made / name).read_text().splitlines(keepends=True)
    (made / name).write_text("".join(whole)[:-20])
    page = page_of(made)
    told = [name, "a torn last line, of a write that was cut off", "1", f"line {len(whole)}"]
    assert told in cells_of(page, "Lines that are not in this report")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("{broken", "no JSON"),
        ("[1]", "JSON that is no object"),
        ('{"id": 3}', "a row of another form than this version writes"),
        ("[" * 5000, "no JSON"),
    ],
)
def test_a_broken_line_is_passed_over_and_told_and_the_others_stay(made, name, line, what):
    before = sources_of(page_of(made))
    (made / name).write_text(f"{line}\n{(made / name).read_text()}")
    page = page_of(made)
    assert [name, what, "1", "line 1"] in cells_of(page, "Lines that are not in this report")
    assert {id: one["count"] for id, one in sources_of(page).items()} == {
        id: one["count"] for id, one in before.items()
    }


def test_trees_in_which_a_page_would_go_in_circles_are_passed_over(made):
    path = made / "round-1/trees/trees.jsonl"
    row = json.loads(path.read_text().splitlines()[0])
    row["nodes"]["parent"][1] = 2
    path.write_text(json.dumps(row) + "\n")
    assert ["round-1/trees/trees.jsonl", "a row of another form than this version writes"] in [
        cells[:2] for cells in cells_of(page_of(made), "Lines that are not in this report")
    ]


def test_figures_that_are_no_numbers_reach_the_page_as_words(made):
    path = made / "round-1/trees/trees.jsonl"
    row = json.loads(path.read_text().splitlines()[0])
    row["nodes"]["value_sum"][1] = float("nan")
    path.write_text(json.dumps(row) + "\n")
    (_, shown), *_ = rows_of(made, sources_of(page_of(made))["trees-1"])
    assert shown["nodes"]["value"][1] == "nan"


def test_trees_of_version_0_1_are_read(made):
    path = made / "round-1/trees/trees.jsonl"
    row = json.loads(path.read_text().splitlines()[0])
    columns = row["nodes"]
    del columns["ids"]
    tokens = columns.pop("tokens")
    row["nodes"] = [
        {"ids": [1] * tokens[k], **{name: column[k] for name, column in columns.items()}}
        for k in range(len(tokens))
    ]
    path.write_text(json.dumps(row) + "\n")
    (_, shown), *_ = rows_of(made, sources_of(page_of(made))["trees-1"])
    assert shown["nodes"]["tag"][5] == "0.0.1"
    assert shown["nodes"]["tokens"][5] == 2


def test_an_unfinished_run_says_what_is_open_and_what_was_not_begun(made):
    lineage = json.loads((made / "lineage.json").read_text())
    lineage["round-1/pairs"]["finished"] = False
    del lineage["evals/sft"]
    (made / "lineage.json").write_text(json.dumps(lineage))
    (made / "round-1/trees/in_flight.log").write_text('{"tree": "p7", "name": "a"}\n{"tree": "p')
    page = page_of(made)
    assert "1 of 2 parts that were begun are done." in page
    assert "Begun and not finished: round-1/pairs." in page
    assert "Not begun: evaluate." in page
    assert ["results kept of unfinished trees", "1"] in cells_of(page, "Rounds")


def test_a_run_that_has_only_begun_has_a_page(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    page = page_of(tmp_path)
    assert "Nothing was begun here yet." in page
    assert "No whole tree so far." in page


def test_what_is_no_workdir_is_refused_and_gets_no_file(tmp_path):
    with pytest.raises(ValueError, match=r"no config\.json, expected the workdir of a run"):
        html.write(tmp_path)
    assert not list(tmp_path.iterdir())


def test_json_of_another_form_is_told_and_ends_nothing(made):
    (made / "evals/results.json").write_text('{"sft": 3, "dpo-1": {"harmful": [1]}}')
    (made / "evals/agreement.json").write_text('{"agreement": [7, {"disagreements": 7}]}')
    (made / "prm/report.json").write_text("[]")
    (made / "lineage.json").write_text('{"sft": 7, "prm": {"settings": [], "begun": 7}}')
    page = page_of(made)
    assert ["prm/report.json", "JSON that is no object", "1", "list"] in cells_of(
        page, "Lines that are not in this report"
    )


def test_a_report_touches_nothing_but_its_own_folder(made):
    def state():
        return {
            path: (path.read_bytes(), path.stat().st_mtime_ns)
            for path in made.rglob("*")
            if path.is_file() and "report" not in path.relative_to(made).parts
        }

    before = state()
    html.write(made)
    assert state() == before


def test_a_later_report_leaves_no_file_of_an_earlier_one(made):
    html.write(made)
    before = {path.name for path in (made / "report/data").iterdir()}
    path = made / "evals/sft/harmful.jsonl"
    path.write_text(path.read_text().replace("sft-q0-response", "another"))
    html.write(made)
    after = {path.name for path in (made / "report/data").iterdir()}
    assert len(after) == len(before)
    assert len(after - before) == 1  # its part; the index says the same


def test_large_lists_come_in_parts_of_which_one_is_loaded_at_a_time(tmp_path):
    run_files.make(tmp_path, trees=2100)
    source = sources_of(page_of(tmp_path))["trees-1"]
    assert source["count"] == 2100
    assert len(source["index"]) == 2
    assert len(source["parts"]) > 5
    rows = rows_of(tmp_path, source)
    assert [line[0] for line, _ in rows] == [row["id"] for _, row in rows]
    assert len({line[0] for line, _ in rows}) == 2100
    sizes = [(tmp_path / "report/data" / f"{name}.js").stat().st_size for name in source["parts"]]
    assert max(sizes) < 100_000


_APPENDS = """
import json, sys, time
row = open(sys.argv[1]).readline()
with open(sys.argv[1], "a") as file:
    for number in range(10**9):
        file.write(row[: len(row) // 2]); file.flush()
        print(number, flush=True)
        time.sleep(0.01)
        file.write(row[len(row) // 2 :]); file.flush()
"""


def test_a_report_is_made_beside_a_run_that_writes_and_after_it_was_killed(made):
    path = made / "evals/sft/harmful.jsonl"
    with subprocess.Popen(
        [sys.executable, "-c", _APPENDS, str(path)], stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout
        for _ in range(3):
            writer.stdout.readline()
        during = sources_of(page_of(made))
        os.kill(writer.pid, signal.SIGKILL)
    after = sources_of(page_of(made))["answers-1"]
    assert during["answers-1"]["count"] >= 4  # three, and what was whole by then
    assert after["count"] == path.read_text().count("\n")
    assert after["count"] >= during["answers-1"]["count"]
