"""The pages: links and files that are there, parts that are made, nothing left out."""

import json
import pathlib
import re
import subprocess
import sys

import pytest

from docs import hooks, house
from stair_jax.config.knob import Knob, Under
from stair_jax.config.schema import KNOBS
from stair_jax.records import Node, Prompt, Tree, to_json
from tests.support.pages import PAGES, ROOT, name_of, shown, without_blocks

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FOLDERS = {path.name for path in ROOT.iterdir() if path.is_dir()} - {"runs", "build", "site"}
SPAN = re.compile(r"`([\w.-]+(?:/[\w.-]+)*/?)`")


every_page = pytest.mark.parametrize("page", PAGES, ids=name_of)


def slug(heading):
    words = re.sub(r"[^\w\s-]", "", re.sub(r"[`*]", "", heading)).strip().lower()
    return re.sub(r"[-\s]+", "-", words)


def anchors(page):
    return {slug(line.lstrip("#")) for line in shown(page).splitlines() if line.startswith("#")}


def dead_links(page, text):
    for target in LINK.findall(without_blocks(text)):
        if re.match(r"https?://", target):
            continue
        file, _, anchor = target.partition("#")
        to = (page.parent / file).resolve() if file else page
        if not to.is_file() or (anchor and anchor not in anchors(to)):
            yield target


def missing_files(text):
    """Names of files of the project, by the folder that they begin with, that are not there."""
    for name in SPAN.findall(text):
        ours = "/" in name and name.split("/")[0] in FOLDERS and not re.search(r"\bNAME\b", name)
        if ours and not (ROOT / name).exists():
            yield name


@every_page
def test_no_link_is_dead(page):
    assert list(dead_links(page, shown(page))) == []


@every_page
def test_files_that_are_named_are_there(page):
    text = shown(page).replace(house.listing(), "")  # names of files within their rooms
    assert list(missing_files(text)) == []


def test_what_is_not_there_is_found():
    page = ROOT / "docs" / "index.md"
    text = (
        "[a](nowhere.md) [b](get-started.md#no-such) [c](get-started.md#go-on) [d](#find-your-page)"
    )
    assert list(dead_links(page, text)) == ["nowhere.md", "get-started.md#no-such"]
    text = "`stair_jax/none.py` `stair_jax/main.py` `docs/` `round-1/pairs` `benchmarks/NAME.py`"
    assert list(missing_files(text)) == ["stair_jax/none.py"]


def test_the_readme_is_short_and_leads_to_every_page_of_the_guide():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) <= 120
    guide = {page.name for page in (ROOT / "docs").glob("*.md")}
    left_out = guide - set(re.findall(r"\(docs/([\w-]+\.md)\)", readme))
    assert left_out == {"index.md", "contributing.md", "benchmarks.md", "changelog.md"}


def test_every_page_is_in_the_menu():
    menu = re.findall(r": ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    there = [str(page.relative_to(ROOT / "docs")) for page in PAGES[1:]]
    assert sorted(menu) == sorted(there)


def test_the_api_pages_name_modules_that_are_there():
    named = [
        line.split()[1]
        for page in (ROOT / "docs" / "api").glob("*.md")
        for line in page.read_text().splitlines()
        if line.startswith(":::")
    ]
    assert len(named) > 30
    files = [ROOT / pathlib.Path(*name.split(".")) for name in named]
    assert [str(file) for file in files if not file.with_suffix(".py").is_file()] == []


def test_the_page_on_data_reads_a_tree_from_disk(tmp_path, monkeypatch, capsys):
    [code] = re.findall(r"```python\n(.*?)```", shown(ROOT / "docs" / "data.md"), re.DOTALL)
    root = Node(
        parent=-1,
        ids=(),
        text="",
        depth=0,
        visits=7,
        value_sum=3.5,
        reward=None,
        terminal=False,
        p=1.0,
        tag="0",
    )
    tree = Tree(prompt=Prompt(id="a", question="why?", type="safety"), nodes=(root,))
    folder = tmp_path / "runs/tiny/round-1/trees"
    folder.mkdir(parents=True)
    (folder / "trees.jsonl").write_text(json.dumps(to_json(tree)) + "\n")
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    assert capsys.readouterr().out == "why? 1 7\n"


# What is made when the pages are built.


def place(part):
    return f"*This part is made when the pages are built (`bash launch/docs.sh`): {part}.*"


def test_a_page_gets_what_is_made_in_its_place():
    made = hooks.on_page_markdown(f"before\n\n{place('rooms')}\n\nafter", page=None)
    assert made == f"before\n\n{house.listing()}\n\nafter"
    with pytest.raises(KeyError, match="nonsense"):
        hooks.on_page_markdown(place("nonsense"))


def entries():
    """The list of keys, by key."""
    parts = re.split(r"^### (.*)\n", hooks.keys(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_every_key_has_an_entry_with_all_that_the_schema_says():
    found = entries()
    assert list(found) == list(KNOBS)
    for key, knob in KNOBS.items():
        text = found[key].replace("\\", "").replace("&lt;", "<")
        assert knob.meaning in text, key
        shown_default = f'"{knob.default}"' if isinstance(knob.default, str) else str(knob.default)
        assert f"default `{shown_default}`" in text, key
        assert (" · may change when a run goes on" in text) == knob.free, key
        assert text.count("Only under: ") == len(knob.under), key
        assert all(f"`{word or chr(34) * 2}`" in text for word in (*knob.choices, *knob.words)), key
        assert "{section}" not in text.replace("{ .facts", ""), key


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("search.c", "`float` · default `1.5` · 0 or more"),
        ("search.iterations", "`int` · default `200` · a number above 0"),
        ("dpo.label_smoothing", "a number in [0, 0.5)"),
        ("dpo.loss", "one of `sigmoid`, `ipo`, `hinge`"),
        ("mesh.shape", "`tuple[int, ...]` · default `(1, -1, 1)`"),
        ("workdir", "`str | None` · default `None`"),
        ("model.template", 'one of `""`, `llama3`, `chatml`'),
        ("sft.train.lora_alpha", "Only under: a config.sft.train.lora_rank above 0"),
        ("engine.share_prefix", "Only under: `on` needs config.engine.attention=xla or pallas"),
        ("deterministic", "its cost: `xla_flags.py`"),
    ],
)
def test_an_entry_reads_as_it_should(key, said):
    assert said in entries()[key].replace("\\", "")


def test_marks_of_a_meaning_are_no_markup():
    assert hooks._escaped("a <b> *c* [d]{e} `f*` g") == r"a &lt;b> \*c\* \[d\]\{e\} `f*` g"
    under = Under(lambda c, own: True, "config.{section}.x", values=("on", "off"))
    knob = Knob(default=1, meaning="", under=(under,))
    assert list(hooks._counts("a", knob)) == ["Only under: `on`, `off` needs config.a.x"]


def test_every_module_is_in_the_house_with_what_it_is():
    listing = house.listing()
    modules = [path for path in house.PACKAGE.rglob("*.py") if path.name != "__init__.py"]
    modules += (ROOT / "kernels").glob("*.py")
    assert len(re.findall(r"^ *- `[\w/]+\.py`: \S", listing, re.MULTILINE)) == len(modules)
    assert "- **`search/`** Trees of reasoning steps" in listing
    assert "    - `benchmarks/gsm8k.py`: GSM8K: word problems" in listing
    assert "    - `top_k.py`: " in listing
    assert "Floor 0: imports no JAX" not in listing


def test_a_module_that_says_nothing_is_refused(tmp_path):
    silent = tmp_path / "silent.py"
    silent.write_text("X = 1\n")
    with pytest.raises(ValueError, match=r"silent\.py: found no docstring"):
        house.said_of(silent)
    silent.write_text('"""What it is.\nIndeed. Floor 0: no JAX.\n\nMore."""\n')
    assert house.said_of(silent) == "What it is. Indeed."


def test_an_example_is_shown_with_what_it_does_and_its_command(tmp_path, monkeypatch):
    (tmp_path / "examples").mkdir()
    script = tmp_path / "examples" / "grow.py"
    script.write_text('"""Grow a tree.\n\nOne sees\nit.\n"""\n\nprint("""a""")\n')
    monkeypatch.setattr(hooks, "ROOT", tmp_path)
    assert hooks.examples() == (
        "## Grow a tree\n\n"
        "```bash\npython examples/grow.py\n```\n\n"
        "One sees\nit.\n\n"
        '```python\nprint("""a""")\n```\n'
    )
    script.write_text("print(1)\n")
    with pytest.raises(ValueError, match=r"grow\.py: found no docstring"):
        hooks.examples()


def test_the_site_builds_without_a_warning(tmp_path):
    """Every warning of mkdocs and its plugins is an error: a link, an anchor, a module's name."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    assert (tmp_path / "configuration" / "index.html").stat().st_size > 100_000  # with all keys
