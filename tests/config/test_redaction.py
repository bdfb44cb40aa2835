"""No secret of the environment reaches a file, a log line or a message."""

import base64
import html
import json
import logging
import sys
import urllib.parse

import pytest

from stair_jax import main, pipeline
from stair_jax.config import redaction
from stair_jax.config.checks import validate
from stair_jax.remote import client
from stair_jax.remote.complaints import Refused
from tests.support.configs import tiny
from tests.support.openai_server import OpenAIServer, completion
from tests.support.remote import _direct, config, four, kept, rate
from tests.support.remote_stage import stage

__all__ = ["_direct", "stage"]  # fixtures

PLANTED = "sk-Pl4nted/+=<&'\"\\key"  # what quoting and encoding change is in it


@pytest.fixture(autouse=True)
def _key(monkeypatch, _direct):
    monkeypatch.setenv(redaction.KEY, PLANTED)


def everywhere(text, secret=PLANTED):
    """Whether a text holds the secret or most of it, in any case."""
    middle = secret[3:9]  # letters and digits, which no encoding changes
    assert middle.isalnum()
    return middle.lower() in text.lower()


@pytest.mark.parametrize(
    "said",
    [
        PLANTED,
        PLANTED.upper(),
        f"Bearer {PLANTED}",
        repr(PLANTED),
        repr(repr(PLANTED)),
        str({"a": PLANTED, "b": "'"}),
        str(PLANTED.encode()),
        json.dumps(PLANTED),
        json.dumps(json.dumps(PLANTED)),
        json.dumps(PLANTED).replace("/", "\\/"),
        urllib.parse.quote(PLANTED),
        urllib.parse.quote(PLANTED, safe=""),
        urllib.parse.quote_plus(PLANTED).lower(),
        urllib.parse.quote(urllib.parse.quote(PLANTED)),
        html.escape(PLANTED),
        html.escape(html.escape(PLANTED)),
        "".join(f"&#{ord(c)};" for c in PLANTED),
        "".join(f"\\u{ord(c):04x}" for c in PLANTED),
        "".join(f"%{ord(c):02X}" for c in PLANTED),
        "".join(f"&#x{ord(c):X};" for c in PLANTED),
    ],
)
def test_however_a_secret_is_written_it_is_hidden(said):
    assert redaction.hide(f"a {said} z") != f"a {said} z"
    left = redaction.hide(f"a {said} z")
    assert redaction.HIDDEN in left
    assert not everywhere(left)
    assert left.startswith("a ")
    assert left.endswith(" z")


def test_short_keys_are_words_and_are_not_hidden(monkeypatch):
    for key, left in (("", "no key"), ("no", "no key"), ("key", "no key"), ("no k", "***ey")):
        monkeypatch.setenv(redaction.KEY, key)
        assert redaction.hide("no key") == left
    assert redaction.LEAST == 4


def test_what_a_proxy_asks_for_is_a_secret_too(monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://me:p%40ssword@proxy:8080")
    said = redaction.hide("proxy me:p%40ssword, me:p@ssword, proxy:8080")
    assert said == "proxy me:***, me:***, proxy:8080"


@pytest.mark.parametrize("name", ["HF_TOKEN", "WANDB_API_KEY", "OPENAI_ADMIN_KEY"])
def test_other_tokens_are_hidden_too(monkeypatch, name):
    monkeypatch.setenv(name, "hf_abcdef")
    assert redaction.hide("wandb: hf_abcdef is no key") == "wandb: *** is no key"


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("sk-secret\n", "OPENAI_API_KEY: character 10 of 10 is a line break, expected printable"),
        ("sk-\rsecret", "character 4 of 10 is a line break"),
        (" sk-secret", "character 1 of 10 is a space"),
        ("sk-sec ret", "character 7 of 10 is a space"),
        ("sk-secr\xe9t", "character 8 of 9 is not ASCII"),
        ("sk-secr\u20act", "character 8 of 9 is not ASCII"),
        ("sk-secr\udce9t", "character 8 of 9 is not ASCII"),
        ("sk-secr\x7ft", "character 8 of 9 is a control character"),
    ],
)
def test_a_key_that_cannot_be_sent_is_refused_by_name(tmp_path, monkeypatch, key, message):
    # setenv cannot hold what an environment may.
    monkeypatch.setattr(redaction.os, "environ", {redaction.KEY: key})
    with pytest.raises(ValueError, match=message) as caught:
        client.EndpointClient(config(), tmp_path / "line")
    c = tiny(workdir=str(tmp_path / "run"))
    c.judge.update(safety="remote", helpfulness="remote", endpoint="http://h/v1", model="m")
    with pytest.raises(ValueError, match=message):
        pipeline.run(c)
    assert not (tmp_path / "run").exists()
    assert "sec" not in str(caught.value)
    c.judge.update(safety="rule", helpfulness="none", endpoint="", model="")
    validate(c)  # nobody is asked


ADDRESSES = [
    ("http://user:pl4nted@h/v1", r"'http://\*\*\*@h/v1' carries a login"),
    ("https://pl4nted@h/v1", r"'https://\*\*\*@h/v1' carries a login"),
    ("https://u:pl4/nted@h/v1", r"'https://\*\*\*@h/v1' is no address"),
    ("https://u:pl4@nted@h/v1", r"'https://\*\*\*@h/v1' carries a login"),
    ("https://h/v1?key=pl4nted", r"'https://h/v1\?\*\*\*' carries a login, a query"),
    ("https://u:pl4?nted@h/v1", r"'https://\*\*\*' is no address"),
    ("https://h/v1#pl4nted", r"'https://h/v1#\*\*\*' carries"),
    ("https://h/v1?a=b@pl4nted", r"'https://\*\*\*' carries"),
    ("user:pl4nted@h/v1", r"endpoint='\*\*\*@h/v1'"),
    ("http:///v1", "'http:///v1' is no address, expected http"),
    ("http://h:99999/v1", "is no address"),
    ("http://[::1/v1", "is no address"),
    ("http://h /v1", "is no address"),
]


@pytest.mark.parametrize(("address", "message"), ADDRESSES)
@pytest.mark.parametrize("used", [True, False])
def test_an_address_that_carries_a_secret_is_refused_before_anything_is_written(
    tmp_path, address, message, used
):
    c = tiny(workdir=str(tmp_path / "run"))
    sides = {"safety": "remote", "helpfulness": "remote"} if used else {}
    c.judge.update(endpoint=address, model="m" if used else "", **sides)
    with pytest.raises(ValueError, match=message if used else "would be ignored") as caught:
        pipeline.run(c)
    assert "\n" not in str(caught.value)
    assert "nted" not in str(caught.value)
    assert not (tmp_path / "run").exists()
    if used and address.startswith("http"):
        with pytest.raises(ValueError, match=message):
            client.EndpointClient(config(address), tmp_path)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("judge__model", f"m {PLANTED}"),
        ("judge__endpoint", f"https://h/{urllib.parse.quote(PLANTED)}/v1"),
        ("project", PLANTED.upper()),
        ("search__score", PLANTED),
    ],
)
def test_a_setting_that_repeats_the_key_is_refused(tmp_path, setting, value, monkeypatch):
    c = tiny(workdir=str(tmp_path / "run"), **{setting: value})
    with pytest.raises(
        ValueError, match=f"config.{setting.replace('__', '.')}: holds the key"
    ) as e:
        pipeline.run(c)
    assert not everywhere(str(e.value))
    assert not (tmp_path / "run").exists()
    monkeypatch.setenv(redaction.KEY, "another key of no setting")
    with pytest.raises(ValueError, match="config") as e:
        pipeline.run(c)
    assert "holds the key" not in str(e.value)


def test_a_key_that_is_a_word_may_stand_in_settings(monkeypatch):
    for key, refused in (("test", False), ("searches", True), ("search", False)):
        monkeypatch.setenv(redaction.KEY, key)
        c = tiny(workdir="runs/searches/test")
        if refused:
            with pytest.raises(ValueError, match=r"config\.workdir: holds the key"):
                validate(c)
        else:
            validate(c)
    assert redaction.LEAST_IN_SETTINGS == 8


# ---- what servers say

REPEATS = {
    "reply": lambda h: h.plain(200, completion(f"{PLANTED}\nConclusion: 4")),
    "json_reply": lambda h: h.plain(200, completion(json.dumps(PLANTED) + "\nConclusion: 4")),
    "part": lambda h: h.plain(200, completion([{"text": f"{PLANTED}\nConclusion: 4"}])),
    "finish": lambda h: h.plain(200, completion("a", PLANTED)),
    "no_json": lambda h: h.plain(200, b"x" * 50 + PLANTED.encode()),
    "no_completion": lambda h: h.plain(200, {"key": PLANTED}),
    "401": lambda h: h.plain(401, {"error": {"message": f"wrong key: {PLANTED}"}}),
    "400_odd": lambda h: h.plain(400, {"what": {"key": PLANTED, "b": "'"}}),
    "422_html": lambda h: h.plain(422, html.escape(f"<p>{PLANTED}").encode()),
    "500": lambda h: h.plain(500, {"error": {"message": "x" * 275 + PLANTED}}),
    "header": lambda h: h.plain(200, b"{}", {"Content-Encoding": urllib.parse.quote(PLANTED)}),
    "redirect": lambda h: h.plain(
        307, b"", {"Location": f"http://{urllib.parse.quote(PLANTED, safe='')}@elsewhere/"}
    ),
}


@pytest.mark.parametrize("name", REPEATS)
def test_what_a_server_repeats_is_neither_kept_nor_shown(tmp_path, monkeypatch, caplog, name):
    monkeypatch.setitem(
        sys.modules["tests.support.openai_server"].FAULTS, name, lambda h, s, t: REPEATS[name](h)
    )
    caplog.set_level(logging.INFO)
    said = ""
    with OpenAIServer(four, lambda text, attempt: name) as server:
        try:
            found, _ = rate(tmp_path, server.url, retries=1)
            assert found == [0.5] or "reply" not in name
        except Refused as error:
            said = str(error)
        assert server.asked[0][2]["authorization"] == f"Bearer {PLANTED}"
    assert not everywhere(said + caplog.text)
    assert not everywhere(json.dumps(kept(tmp_path)))
    assert "***" in said + caplog.text + json.dumps(kept(tmp_path)) or name in ("500", "redirect")


def test_a_planted_key_is_in_no_file_of_a_stage_and_in_no_log(stage, tmp_path, monkeypatch, caplog):
    names = [name for name in REPEATS if name not in ("401", "redirect")]
    for name in names:
        monkeypatch.setitem(
            sys.modules["tests.support.openai_server"].FAULTS,
            name,
            lambda h, s, t, name=name: REPEATS[name](h),
        )
    monkeypatch.setenv(redaction.KEY, PLANTED)
    asked = []

    def fault(text, attempt):
        asked.append(text)
        return names[len(asked) % (2 * len(names)) // 2] if len(asked) % 2 else ""

    caplog.set_level(logging.INFO)
    with OpenAIServer(four, fault) as server:
        _, ended, _ = stage(server.url)
    assert len(asked) > 2 * len(names)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"trees.jsonl", "lineage.json", "judgements.jsonl"} <= {path.name for path in files}
    for path in files:
        assert not everywhere(path.read_bytes().decode(errors="replace")), path
    assert not everywhere(caplog.text + str(ended))


# ---- the last line of defence


def test_the_command_line_logs_and_ends_without_secrets(monkeypatch, capsys):
    def run(config, flags):
        del config
        log = logging.getLogger("any")
        log.info("key %s", PLANTED)
        try:
            raise OSError(f"inner {PLANTED}")
        except OSError:
            log.exception("caught")
        raise ValueError(f"outer {PLANTED}")

    monkeypatch.setattr(pipeline, "run", run)
    monkeypatch.setattr(main.mesh, "show_cpus", lambda *_: None)
    monkeypatch.setattr(main.interrupt, "install", lambda: None)
    monkeypatch.setattr(main.bars, "quiet_libraries", lambda: None)
    for name in ("claim_memory", "keep_programs"):
        monkeypatch.setattr(main.startup, name, lambda *_: None)
    monkeypatch.setattr(main.xla_flags, "add", lambda **_: None)
    monkeypatch.setattr(main, "_CONFIG", type("Flag", (), {"value": tiny(workdir="x")}))
    monkeypatch.setattr(main.flags, "FLAGS", {"config": None})
    monkeypatch.setattr(main.config_flags, "get_override_values", lambda _: {})
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    root.handlers = []
    try:
        with pytest.raises(SystemExit) as ended:
            main.main(["main"])
    finally:
        root.handlers, root.level = before, level
    said = capsys.readouterr().err
    assert "key ***" in said
    assert "OSError: inner ***" in said
    assert str(ended.value) == "error: outer ***"
    assert not everywhere(said)


def test_the_planted_key_would_be_found():
    assert everywhere(PLANTED)
    assert everywhere(urllib.parse.quote(PLANTED))
    assert not everywhere(base64.b64encode(PLANTED.encode()).decode())


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("owner/name", "owner/name"),
        ("miniature", "miniature"),
        ("", ""),
        ("/home/me/secret/rows.jsonl", "rows.jsonl"),
        ("mine/rows.jsonl", "rows.jsonl"),
        ("../rows", "rows"),
        ("~/models/base", "base"),
        ("~/models/base/", "base"),
        ("C:\\me\\base", "base"),
        ("a/b/c", "c"),
        ("/cache/hub/models--owner--base-1B/snapshots/0123", "owner/base-1B"),
    ],
)
def test_a_source_is_shown_without_the_folders_of_the_machine(source, shown):
    assert redaction.shown_source(source) == shown


def test_a_folder_that_is_there_is_no_hub_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert redaction.shown_source("owner/name") == "owner/name"
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert redaction.shown_source("owner/name") == "name"
