"""Secrets of the environment, which may reach no file, no log line and no message.

The configuration holds no secret: it is written to config.json, handed to trackers and shown by
`ps`. So the address of a server is refused where it carries a login or a query, and any setting is
refused that repeats the key. What servers say is shown and kept with the secrets taken out.
"""

import functools
import html.entities
import logging
import os
import pathlib
import re
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from typing import Any

from stair_jax.config.words import ROW_FILES

KEY = "OPENAI_API_KEY"
_OTHERS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "OPENAI_ADMIN_KEY")
HIDDEN = "***"
LEAST = 4  # characters; a shorter key protects nothing, and hiding it would garble every text
_FORMATTER = logging.Formatter()  # of exceptions
LEAST_IN_SETTINGS = 8  # characters; a shorter key is a word such as "test", which settings hold


def key() -> str:
    """Returns the key of the judge's endpoint; "" where there is none.

    Raises:
      ValueError: where it cannot be sent in a header. The message does not show it.
    """
    value = os.environ.get(KEY, "")
    for place, letter in enumerate(value, start=1):
        if not "!" <= letter <= "~":
            raise ValueError(
                f"{KEY}: character {place} of {len(value)} is {_kind_of(letter)}, expected"
                " printable ASCII without spaces"
            )
    return value


def _kind_of(letter: str) -> str:
    if letter in "\r\n":
        return "a line break"
    if letter.isspace():
        return "a space"
    return "a control character" if letter < " " or letter == "\x7f" else "not ASCII"


def check_address(setting: str, address: str) -> None:
    """Refuses what is not the bare address of a server.

    Args:
      setting: the name of the setting that holds it, for the message.
      address: scheme, host, port and path.

    Raises:
      ValueError: for another scheme, no host, a bad port, spaces, a login, a query or a fragment.
    """
    shown = f"config.{setting}: {shown_address(address)!r}"
    if not address.startswith(("http://", "https://")):
        raise ValueError(f"{shown}, expected http:// or https:// in front")
    netloc = ""
    whole = all(letter.isprintable() and not letter.isspace() for letter in address)
    try:
        parts = urllib.parse.urlsplit(address)
        netloc, whole = parts.netloc, whole and bool(parts.hostname) and parts.port != 0
    except ValueError:
        whole = False
    if not whole:
        raise ValueError(f"{shown} is no address, expected http(s)://host[:port][/path]")
    if "@" in netloc or "?" in address or "#" in address:
        raise ValueError(
            f"{shown} carries a login, a query or a fragment, which would be written to"
            f" config.json; expected http(s)://host[:port][/path], and a key in {KEY}"
        )


def shown_address(address: str) -> str:
    """Returns an address without what may be secret: login, query, fragment."""
    scheme, mark, rest = address.partition("://")
    scheme, rest = (scheme + mark, rest) if mark else ("", address)
    _, at, place = rest.rpartition("@")
    tail = re.search("[?#]", rest)
    if at and tail:  # which part is which cannot be told
        return scheme + HIDDEN
    if at:
        return f"{scheme}{HIDDEN}@{place}"
    return scheme + (rest[: tail.end()] + HIDDEN if tail else rest)


def shown_source(source: str) -> str:
    """Returns what a file, a folder or a hub name is called, without the folders it lies in.

    A model in the hub's local cache has the name that it has on the hub.
    """
    if cached := re.search(r"(?:^|[\\/])models--([\w.-]+?)--([\w.-]+?)(?:[\\/]|$)", source):
        return f"{cached[1]}/{cached[2]}"
    path = pathlib.Path(source).expanduser()
    if is_hub_name(source) and not path.exists():
        return source
    return re.split(r"[\\/]", source.rstrip("\\/"))[-1]


def is_hub_name(source: str) -> bool:
    """Returns whether a text has the form owner/name of a repository of the hub, and no suffix of a
    file of rows.
    """
    form = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"
    return bool(re.fullmatch(form, source, re.ASCII)) and not source.endswith(ROW_FILES)


def check_settings(settings: Mapping[str, Any]) -> None:
    """Refuses a setting that repeats the key.

    Args:
      settings: nested, as `ConfigDict.to_dict` gives them.

    Raises:
      ValueError: naming the setting, without its value.
    """
    value = os.environ.get(KEY, "")
    pattern = _pattern_of((value,)) if len(value) >= LEAST_IN_SETTINGS else None
    for name, text in _texts("config", settings):
        if pattern is not None and pattern.search(text):
            raise ValueError(
                f"{name}: holds the key of {KEY}, which would be written to config.json; expected"
                " it in the environment alone"
            )


def _texts(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """Yields the strings of nested settings with their dotted names."""
    if isinstance(value, str):
        yield name, value
    elif isinstance(value, Mapping):
        for inner, deeper in value.items():
            yield from _texts(f"{name}.{inner}", deeper)
    elif isinstance(value, tuple | list):
        for deeper in value:
            yield from _texts(name, deeper)


def hide(text: str) -> str:
    """Returns a text without the environment's secrets, however they are quoted or encoded.

    They are the key, what proxies ask for, and the tokens of the hub and of trackers.
    """
    pattern = _pattern_of(tuple(sorted(_secrets())))
    return pattern.sub(HIDDEN, text) if pattern else text


def hide_in_record(record: logging.LogRecord) -> bool:
    """Takes the secrets out of a log record; a filter that lets all pass."""
    record.msg, record.args = hide(record.getMessage()), None
    if record.exc_info:
        record.exc_text = hide(_FORMATTER.formatException(record.exc_info))
    return True


def _secrets() -> set[str]:
    found = {os.environ.get(name, "").strip() for name in (KEY, *_OTHERS)}
    for address in urllib.request.getproxies().values():
        login, at, _ = address.rpartition("@")
        if at:
            _, _, password = login.rpartition("//")[2].partition(":")
            found |= {password, urllib.parse.unquote(password)}
    return {secret for secret in found if len(secret) >= LEAST}


@functools.lru_cache(maxsize=8)
def _pattern_of(secrets: tuple[str, ...]) -> re.Pattern[str] | None:
    """Returns what finds any of the secrets, the longest first; None where there is none."""
    longest_first = sorted(secrets, key=len, reverse=True)
    found = ["".join(map(_forms_of, secret)) for secret in longest_first]
    return re.compile("|".join(found), re.IGNORECASE) if found else None


def _forms_of(letter: str) -> str:
    """Returns a pattern of one letter: plain, or as URLs, JSON, Python, shells or HTML write it."""
    code, encoded = ord(letter), urllib.parse.quote(letter.encode(errors="replace"), safe="")
    forms = [re.escape(letter), re.escape(encoded), f"%(?:25)*{code:02x}"]
    forms.append(rf"\\+(?:{re.escape(letter)}|x{code:02x}|u{code:04x})")
    forms.append(f"&(?:amp;)?#(?:x0*{code:x}|0*{code});")
    if name := html.entities.codepoint2name.get(code):
        forms.append(f"&(?:amp;)?{name};")
    if letter == "\n":
        forms.append(r"\\+n")
    return f"(?:{'|'.join(dict.fromkeys(forms))})"
