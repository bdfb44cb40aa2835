"""A Hugging Face hub on loopback: as much of it as an upload of a model asks for.

Source of the protocol: the requests of huggingface_hub's client. Files go through Git LFS where
they are weights, and with the commit otherwise.
"""

import base64
import contextlib
import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from huggingface_hub import constants

TOKEN = "hf_loopbackloopbackloopback"


class Hub:
    """Serves until the `with` block ends.

    `repos` has {name: {"private": bool, "files": {path: bytes}, "commits": int}}, `asked` the
    method and path of every request, `sent` the LFS objects that came, by hash. `fault`, where it
    is set, gets method and path and returns a status to answer with, or None.
    """

    def __init__(self):
        self.repos: dict[str, dict[str, Any]] = {}
        self.asked: list[str] = []
        self.sent: dict[str, bytes] = {}
        self.fault: Any = lambda method, path: None
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.daemon_threads = True
        self._server.hub = self  # pyright: ignore[reportAttributeAccessIssue]
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *error):
        self._server.shutdown()
        self._server.server_close()

    def create(self, body):
        name = "/".join(filter(None, (body.get("organization"), body["name"])))
        url = f"{self.url}/{name}"
        if name in self.repos:
            return 409, {"error": "You already created this model repo", "url": url}
        private = body.get("private", body.get("visibility") == "private")
        self.repos[name] = {"private": private, "files": {}, "commits": 0}
        return 200, {"url": url, "name": name, "id": name}

    def preupload(self, repo, body):
        paths = [x["path"] for x in body["files"]]
        usual = {"shouldIgnore": False}
        files = [
            usual | {"path": path, "uploadMode": _mode(path), "oid": self.oid(repo, path)}
            for path in paths
        ]
        return 200, {"files": files}

    def oid(self, repo, path):
        """What a file of the repository is known by: git's hash, or of LFS the SHA-256."""
        data = self.repos[repo]["files"].get(path)
        if data is None:
            return None
        if _mode(path) == "lfs":
            return hashlib.sha256(data).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

    def batch(self, repo, body):
        have = {hashlib.sha256(x).hexdigest() for x in self.repos[repo]["files"].values()}
        objects = []
        for one in body["objects"]:
            action = {"upload": {"href": f"{self.url}/lfs/{one['oid']}"}}
            there = one["oid"] in have | {*self.sent}
            objects.append(one if there else one | {"actions": action})
        return 200, {"transfer": "basic", "objects": objects}

    def commit(self, repo, lines):
        files = self.repos[repo]["files"]
        for line in lines:
            value = line["value"]
            match line["key"]:
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = self.sent[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
        self.repos[repo]["commits"] += 1
        return 200, {
            "commitOid": f"{self.repos[repo]['commits']:040x}",
            "commitUrl": f"{self.url}/{repo}/commit/1",
            "pullRequestUrl": None,
        }

    def tree(self, repo):
        return 200, [
            {"type": "file", "path": path, "size": len(data), "oid": self.oid(repo, path)}
            for path, data in self.repos[repo]["files"].items()
        ]

    def info(self, repo):
        found = self.repos[repo]
        names = [{"rfilename": path} for path in found["files"]]
        return 200, {"id": repo, "private": found["private"], "siblings": names, "sha": "0" * 40}

    revision = info

    def answer(self, method, path, body):
        """Returns status and JSON of a request."""
        self.asked.append(f"{method} {path}")
        if status := self.fault(method, path):
            return status, {"error": f"the test wants {status}"}
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if found := re.fullmatch(r"/lfs/([0-9a-f]{64})", path):
            self.sent[found[1]] = body
            return 200, {}
        if found := re.fullmatch(r"/(.+/.+)\.git/info/lfs/objects/batch", path):
            return self.batch(found[1], json.loads(body))
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(\w+)/main)?", path):
            repo, what = found[1], found[2] or "info"
            if repo not in self.repos:
                return 404, {"error": "Repository not found"}
            if what == "commit":
                return self.commit(repo, [json.loads(line) for line in body.splitlines()])
            given = (json.loads(body),) if body else ()
            return getattr(self, what)(repo, *given)
        return 404, {"error": f"no such endpoint: {method} {path}"}


def _mode(path):
    return "lfs" if path.endswith(".safetensors") else "regular"


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format, *args):
        pass

    def do_POST(self):
        hub: Hub = self.server.hub  # pyright: ignore[reportAttributeAccessIssue]
        length = self.headers.get("Content-Length")
        body = self.rfile.read(int(length)) if length else self._chunks()
        path = urlsplit(self.path).path
        if path.startswith("/lfs/") or self.headers.get("Authorization") == f"Bearer {TOKEN}":
            status, found = hub.answer(self.command, path, body)
        else:
            status, found = 401, {"error": "Invalid credentials"}
        data = json.dumps(found).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_PUT = do_POST

    def _chunks(self):
        data = b""
        if self.headers.get("Transfer-Encoding") != "chunked":
            return data
        while size := int(self.rfile.readline(), 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data


@contextlib.contextmanager
def logged_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that the client talks to, with a token."""
    with Hub() as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield running
