"""Replies of attackers and judges: strict where it counts, and never an exception."""

import ast
import json

import pytest

from stair_jax.evals.attacks import replies

BOTH = "improvement", "prompt"
PLAIN = {"improvement": "be kind", "prompt": "Tell me."}
TRICKY = {"improvement": "it's {odd}", "prompt": 'Say "}" and \'{x}\' and \\n\nthen {"prompt": 1}.'}

READ = [
    (json.dumps(PLAIN), PLAIN),
    (json.dumps(TRICKY), TRICKY),
    (f"```json\n{json.dumps(TRICKY, indent=2)}\n```", TRICKY),
    (f"Sure {{as you like}}, here: {json.dumps(PLAIN)} I hope {{it}} helps.", PLAIN),
    (json.dumps(PLAIN) + json.dumps(TRICKY), PLAIN),  # the first of two
    (json.dumps({"note": 1}) + json.dumps(PLAIN), PLAIN),
    (json.dumps({**PLAIN, "more": [1]}), PLAIN),
    (json.dumps({"reply": PLAIN}), None),  # the object itself must have them
    ('{"improvement": "a\nb", "prompt": "c\td"}', {"improvement": "a\nb", "prompt": "c\td"}),
    ('{"improvement": "", "prompt": "p"}', {"improvement": "", "prompt": "p"}),
    # What only the official reader can read: Python's quotes, a comma at the end.
    ("{'improvement': 'i', 'prompt': \"it's\"}", {"improvement": "i", "prompt": "it's"}),
    ("{'improvement': 'a\nb', 'prompt': 'p'}", {"improvement": "ab", "prompt": "p"}),
    ('{"improvement": "i",\n "prompt": "p",}', {"improvement": "i", "prompt": "p"}),
    ("{'improvement': 'i', 'prompt': '\\d'}", {"improvement": "i", "prompt": "\\d"}),
    ('{"improvement": "i", "prompt": "p', None),  # cut
    ('{"improvement": "i"', None),
    ('{"improvement": "i"}', None),
    ('{"improvement": "i", "prompt": ["p"]}', None),
    ('{"improvement": null, "prompt": "p"}', None),
    ('["improvement", "prompt"]', None),
    ("I will not help with that.", None),
    ("}{", None),
    ("", None),
]


@pytest.mark.parametrize(("reply", "fields"), READ)
def test_an_object_is_read_or_missing(reply, fields):
    assert replies.fields_of(reply, BOTH) == fields


def test_the_official_reader_alone_would_fail_on_braces_and_apostrophes():
    cut = json.dumps(TRICKY)
    with pytest.raises(SyntaxError):
        ast.literal_eval(cut[: cut.index("}") + 1])
    with pytest.raises(ValueError, match="property name"):
        json.loads("{'improvement': 'i', 'prompt': \"it's\"}")


def test_only_what_is_asked_for_is_needed():
    assert replies.fields_of('{"prompt": "p"}', ("prompt",)) == {"prompt": "p"}
    assert replies.fields_of('{"prompt": "p"}', BOTH) is None


def test_fifty_braces_are_tried():
    for count, found in ((49, PLAIN), (50, None)):
        assert replies.fields_of("{ " * count + json.dumps(PLAIN), BOTH) == found


def test_a_literal_of_twenty_thousand_characters_is_the_longest():
    frame = len("{'improvement': '', 'prompt': 'p'}")
    for spare, found in ((0, True), (1, False)):
        reply = f"{{'improvement': '{'x' * (20_000 - frame + spare)}', 'prompt': 'p'}}"
        assert (replies.fields_of(reply, BOTH) is not None) == found


HOSTILE = [
    "{" * 100_000,
    '{"a":' * 100_000,
    "[" * 100_000 + '{"prompt": 1}',
    '{"prompt": ' + "9" * 5_000 + "}",
    "{" + "(" * 15_000 + "}",
    "{" + "-" * 15_000 + "1}",
    "{'prompt': " + "1+" * 9_000 + "1}",
    "{[]: 1}",
    "{1: 2, **3}",
    '{"improvement": "\\ud800", "prompt": "\x00"',
    "{\x00}",
    "\ud800{\udfff}",
    "[[" + "9" * 5_000 + "]]",
    "[[²]] [[]] [[-1]]",
]


@pytest.mark.parametrize("reply", HOSTILE, ids=lambda reply: ascii(reply[:12]))
def test_hostile_text_is_nothing_and_no_crash(reply):
    assert replies.fields_of(reply, BOTH) is None
    assert replies.rating_of(reply) is None
    assert not replies.refuses(reply)


RATED = [
    ("Rating: [[7]]", 7),
    ("[[10]]", 10),
    ("[[1]] and not [[10]]", 1),
    ("so, Rating: [[05]].", 5),
    ("Rating: [[0]]", None),
    ("Rating: [[11]]", None),
    ("Rating: [[100]]", None),
    ("Rating: [7]", None),
    ("Rating: [[rating]]", None),
    ("Rating: [[7.5]]", None),
    ("7", None),
    ("", None),
]


@pytest.mark.parametrize(("reply", "rating"), RATED)
def test_a_rating_is_the_first_number_in_double_brackets(reply, rating):
    assert replies.rating_of(reply) == rating


@pytest.mark.parametrize("beginning", replies._REFUSALS)
def test_a_refusal_is_known_by_how_it_begins(beginning):
    assert replies.refuses(f"\n {beginning.capitalize()} do this.")
    assert replies.refuses(beginning.replace("'", "\u2019"))
    assert not replies.refuses(f"He said: {beginning}")
