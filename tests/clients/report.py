"""Looks at reports of runs in a real browser: hostile text, keys, narrow screens, axe, many trees.

    python -m tests.clients.report [--browser PATH] [--axe FILE] [--trees N] [--pictures FOLDER
        WORKDIR]

Needs the package `playwright` and a Chromium at PATH (Debian's by default); FILE is `axe.min.js` of
the npm package axe-core, without which accessibility is not checked, and the script says so.
Reports are made of workdirs that are made by hand: one in which every text is hostile, one with N
trees (10,000). Ends with a line a check, and with exit 1 where one failed. With `--pictures` it
draws the pages' pictures of WORKDIR's report instead. Needs no network. Takes a minute or two.
"""

import argparse
import contextlib
import io
import json
import pathlib
import random
import sys
import tempfile
import time

from PIL import Image
from playwright import sync_api  # pyright: ignore[reportMissingImports]  (an environment's own)

from stair_jax.evals.report import html
from tests.support import run_files

HOSTILE = " ".join(
    (
        "</script><script>window.hit=1</script>",
        "\"><img src=x onerror='window.hit=2'>",
        "<svg onload=window.hit=3></svg><svg><script>window.hit=4</script></svg>",
        '<a href="javascript:window.hit=5">x</a> javascript:window.hit=6',
        "<iframe srcdoc='<script>parent.hit=7</script>'></iframe>",
        "<style>*{display:none}</style><base href='http://127.0.0.1:9/'>",
        "<script src='http://127.0.0.1:9/x.js'></script> http://127.0.0.1:9/y",
        '");window.hit=8;(" ${window.hit=9} {{ 7*7 }}',
    )
)
WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 360, "height": 740}
GROUPS = ("trees", "pairs", "answers", "judges", "rows")
SERIOUS = ("serious", "critical")


class Checks:
    """What was looked at, and whether it was so."""

    def __init__(self):
        self.failed = 0

    def __call__(self, name, good, said=""):
        self.failed += not good
        print(f"{'ok' if good else 'FAILED'}: {name}" + (f": {said}" if said else ""), flush=True)


@contextlib.contextmanager
def opened(browser, path, **settings):
    """A page of the report, and a list of what it asked for beside files, and of its errors."""
    page = browser.new_page(**{"viewport": WIDE, **settings})
    page.set_default_timeout(60_000)
    strange = []
    page.on("request", lambda r: r.url.startswith(("file:", "data:")) or strange.append(r.url))
    page.on("pageerror", lambda error: strange.append(f"error: {error}"))
    page.on("console", lambda said: said.type == "error" and strange.append(said.text))
    page.on("dialog", lambda dialog: (strange.append("a dialog"), dialog.dismiss()))
    page.goto(path.as_uri())
    yield page, strange
    page.close()


def unfold(page, rows=3):
    """Opens every part of a page, and the first rows of every list; returns all that it shows."""
    shown = []
    for group in GROUPS:
        browse = page.locator(f".browse[data-group={group}]")
        if not browse.count():
            continue
        browse.scroll_into_view_if_needed()
        browse.locator(".rows > li").first.wait_for()
        which = browse.get_by_label("Which")
        for place in range(which.locator("option").count() if which.count() else 1):
            if place:
                which.select_option(index=place)
                browse.get_by_text("Loading").wait_for(state="hidden")
                page.wait_for_timeout(200)
            for number in range(min(rows, browse.locator(".rows > li").count())):
                entry = browse.locator(".rows > li").nth(number)
                entry.locator("summary").first.click()
                entry.locator(".body > *").first.wait_for()
            shown.append(browse.inner_text())
    page.evaluate("document.querySelectorAll('.body button').forEach((one) => one.click())")
    page.wait_for_timeout(300)
    page.evaluate("document.querySelectorAll('main details').forEach((one) => one.open = true)")
    return " ".join([page.locator("main").inner_text(), *shown])


def hostile(browser, folder, check):
    """Every text of a run tries to be markup, a script, a style or an address."""
    run_files.make(folder, lambda place: f"{place} {HOSTILE}")
    path = html.write(folder)
    naked = folder / "naked.html"
    naked.write_text(f"<!doctype html><p>{HOSTILE}")
    with opened(browser, naked) as (page, _):
        page.wait_for_timeout(300)
        check("the payloads work where nothing holds them", page.evaluate("window.hit") is not None)
    with opened(browser, path) as (page, strange):
        shown = unfold(page)
        check("no payload ran", page.evaluate("window.hit") is None)
        check("nothing was asked for, no error, no dialog", not strange, str(strange[:3]))
        kinds = page.evaluate(
            "['img', 'iframe', 'base', 'main svg[onload]', 'main a', 'main style', 'main script']"
            ".map((kind) => document.querySelectorAll(kind).length)"
        )
        check("no element came of a text", not any(kinds), str(kinds))
        places = [
            "p0-question",
            "p0-node-0.0.1",
            "p0-prefill",
            "base-q0-response",
            "dpo-1-q0-response",
            "disputed-answer",
            "verdict-reply",
            "candidate-text",
            "dropped-reason",
            "passed-over",
            "judges-page",
            "benchmark-name",
        ]
        lost = [place for place in places if f"{place} </script><script>" not in shown]
        check("all of them are shown as text", not lost, str(lost))
        made = page.evaluate(
            "() => { try { document.body.innerHTML += '<b>x</b>'; return 'set' }"
            " catch { return 'refused' } }"
        )
        check("the policy refuses markup from a script", made == "refused", made)


def keys(browser, folder, check):
    """A tree and a list are used without a mouse."""
    run_files.make(folder)
    with opened(browser, html.write(folder)) as (page, _):
        page.keyboard.press("Tab")
        focused = "document.activeElement.textContent.trim()"
        check("the first key leads past the menu", "Skip" in page.evaluate(focused))
        page.get_by_role("link", name="Left out").click()
        page.wait_for_timeout(2500)
        top = page.evaluate("document.getElementById('dropped').getBoundingClientRect().top")
        check("a section stays where the menu led", -5 <= top < 200, f"{top:.0f} from the top")
        browse = page.locator(".browse[data-group=trees]")
        browse.scroll_into_view_if_needed()
        browse.locator(".rows summary").first.focus()
        page.keyboard.press("Enter")
        browse.locator("[role=tree]").wait_for()
        page.keyboard.press("Tab")
        tag = "document.activeElement.querySelector('strong')?.textContent"
        seen = [page.evaluate(tag)]
        for key in (
            "ArrowDown",
            "ArrowRight",
            "ArrowLeft",
            "ArrowLeft",
            "ArrowDown",
            "End",
            "Home",
        ):
            page.keyboard.press(key)
            seen.append(page.evaluate(tag))
        # into 0.0, to its first child, back, 0.0 closes, on to 0.1, the end, the start
        wanted = ["0", "0.0", "0.0.0", "0.0", "0.0", "0.1", "0.2", "0"]
        check("arrows, Home and End walk a tree", seen == wanted, str(seen))
        page.keyboard.press("ArrowDown")
        told = page.locator("[role=tree]").aria_snapshot()
        wanted = '- treeitem "0.0 value 1.5 4 visits prior 1 chosen over 0.1'
        check("screen readers get a node's name, and its children under it", wanted in told)
        answers = page.locator(".browse[data-group=answers]")
        answers.scroll_into_view_if_needed()
        answers.locator(".rows > li").first.wait_for()
        answers.get_by_label("Model").select_option(label="dpo-1")
        answers.get_by_label("Compare with").wait_for()
        answers.get_by_label("Compare with").select_option(label="sft")
        answers.get_by_label("Compared outcomes").select_option(label="those that differ")
        page.wait_for_timeout(300)
        titles = answers.locator(".title").all_inner_texts()
        check("answers that changed are found", titles == ["said-q1-question"], str(titles))
        answers.get_by_label("Compared outcomes").select_option(label="all")
        answers.get_by_label("in all texts").check()
        answers.get_by_role("searchbox").fill("DPO-1-Q2-response")
        page.wait_for_timeout(600)
        titles = answers.locator(".title").all_inner_texts()
        check("a text of an answer is found", titles == ["said-q2-question"], str(titles))


def screens(browser, folder, check, axe):
    """Narrow and wide, light and dark, with everything open; and without JavaScript."""
    run_files.make(folder)
    path = html.write(folder)
    for size, scheme in ((WIDE, "light"), (WIDE, "dark"), (NARROW, "light"), (NARROW, "dark")):
        with opened(browser, path, viewport=size, color_scheme=scheme) as (page, strange):
            unfold(page)
            width = page.evaluate("document.documentElement.scrollWidth")
            name = f"{size['width']} wide, {scheme}"
            check(f"{name}: nothing sticks out", width <= size["width"], str(width))
            if axe:
                page.evaluate(axe.read_text())
                found = page.evaluate("axe.run().then((found) => found.violations)")
                bad = [one for one in found if one["impact"] in SERIOUS]
                said = [f"{one['id']} ({len(one['nodes'])})" for one in bad]
                minor = [one["id"] for one in found if one not in bad]
                check(f"{name}: axe finds nothing serious", not bad, f"{said}, minor {minor}")
                for one in bad:
                    print("   ", one["help"], [node["html"][:150] for node in one["nodes"][:3]])
            check(f"{name}: no error", not strange, str(strange[:3]))
    with opened(browser, path, java_script_enabled=False) as (page, _):
        said = page.locator("main").inner_text()
        check("without JavaScript there are table, drops, lineage", "small_gap" in said)


def many(browser, folder, check, trees):
    """A page of a large run is there at once, and holds what it shows."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghij ", k=60)) for _ in range(997)]

    def long(place):
        return f"{run_files.plain(place)} {' '.join(draw.choices(words, k=12))}"

    run_files.make(folder, long, trees=trees)
    begun = time.perf_counter()
    path = html.write(folder)
    took = time.perf_counter() - begun
    data = sum(file.stat().st_size for file in (folder / "report/data").iterdir())
    page_bytes = path.stat().st_size
    print(f"{trees:,} trees: written in {took:.1f} s; page {page_bytes:,}, data {data:,} bytes")
    with opened(browser, path) as (page, strange):
        paints = "performance.getEntriesByType('paint')"
        while page.evaluate(f"{paints}.length") < 2:  # what waits in the page needs eval
            page.wait_for_timeout(50)
        paint = page.evaluate(f"Math.max(...{paints}.map((one) => one.startTime))")
        browse = page.locator(".browse[data-group=trees]")
        begun = time.perf_counter()
        browse.scroll_into_view_if_needed()
        browse.locator(".rows > li").first.wait_for()
        listed = time.perf_counter() - begun
        heap = [page.evaluate("performance.memory.usedJSHeapSize / 1e6")]
        browse.get_by_role("searchbox").fill(f"said-p{trees - 1}-")
        page.wait_for_timeout(300)
        browse.get_by_text("1 of ").wait_for()
        browse.locator(".rows summary").first.click()
        browse.locator("[role=tree]").wait_for()
        browse.get_by_role("searchbox").fill("")
        browse.get_by_label("in all texts").check()
        begun = time.perf_counter()
        browse.get_by_role("searchbox").fill(f"said-p{trees - 1}-node-0.2")
        browse.get_by_text("1 of ").wait_for()
        sought = time.perf_counter() - begun
        heap.append(page.evaluate("performance.memory.usedJSHeapSize / 1e6"))
        check(f"{trees:,} trees: no error", not strange, str(strange[:3]))
        check(f"{trees:,} trees: memory stays small", max(heap) < 150, f"{heap} MB")
        facts = {"first_paint_ms": paint, "listed_s": listed, "searched_s": sought, "heap_mb": heap}
        print(json.dumps(facts))


def pictures(browser, folder, workdir):
    """Draws what the page on reports shows, of a workdir with two rounds or more."""
    path = html.write(workdir)
    folder.mkdir(parents=True, exist_ok=True)

    def draw(what, name):
        shot = Image.open(io.BytesIO(what.screenshot())).convert("RGB")
        shot.quantize(192).save(folder / f"{name}.png", optimize=True)

    def of_safety(page, group):
        browse = page.locator(f".browse[data-group={group}]")
        browse.scroll_into_view_if_needed()
        browse.get_by_label("Which").select_option(index=1)
        page.wait_for_timeout(1000)
        browse.get_by_label("Type").select_option("=safety")
        return browse

    size = {"width": 1100, "height": 760}
    with opened(browser, path, viewport=size) as (page, _):
        draw(page, "report")
        browse = of_safety(page, "trees")
        browse.get_by_label("Pairs").select_option("=gave pairs")
        page.wait_for_timeout(500)
        browse.locator(".rows summary").first.click()
        browse.locator("[role=tree]").wait_for()
        draw(browse.locator("[role=tree]"), "report-tree")
    with opened(browser, path, viewport=size, color_scheme="dark") as (page, _):
        browse = of_safety(page, "pairs")
        page.wait_for_timeout(500)
        browse.locator(".rows summary").first.click()
        body = browse.locator(".body").first
        body.locator("mark").first.wait_for()
        draw(body, "report-pair")


def main(arguments=None):
    """Runs all checks, or draws the pictures; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--browser", default="/usr/bin/chromium", metavar="PATH")
    parser.add_argument("--axe", type=pathlib.Path, metavar="FILE")
    parser.add_argument("--trees", type=int, default=10_000)
    parser.add_argument("--pictures", nargs=2, type=pathlib.Path, metavar=("FOLDER", "WORKDIR"))
    options = parser.parse_args(arguments)
    check = Checks()
    with sync_api.sync_playwright() as play, tempfile.TemporaryDirectory() as folder:
        flags = ["--no-sandbox", "--enable-precise-memory-info"]
        browser = play.chromium.launch(executable_path=options.browser, args=flags)
        print(f"Chromium {browser.version}")
        if options.pictures:
            pictures(browser, *options.pictures)
            return 0
        root = pathlib.Path(folder)
        hostile(browser, root / "hostile", check)
        keys(browser, root / "keys", check)
        screens(browser, root / "screens", check, options.axe)
        if not options.axe:
            print("axe-core was not given (--axe FILE): accessibility was not checked")
        many(browser, root / "many", check, options.trees)
    print(f"{check.failed} checks failed")
    return 1 if check.failed else 0


if __name__ == "__main__":
    sys.exit(main())
