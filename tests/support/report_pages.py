"""A report as a test reads it: elements and tables of the page, and the rows that it loads."""

import json
import re
from html import parser, unescape

from stair_jax.evals.report import html
from stair_jax.evals.report.parts import shards


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
