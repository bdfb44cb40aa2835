"""Has schemathesis ask a server everything that its OpenAPI allows, and much that it does not.

    python -m tests.clients.openapi --schemathesis PROGRAM [--examples N]

PROGRAM is the command of an environment with schemathesis. The server is the one of the tests: the
product over a model of random weights, on a socket of this machine. Ends as schemathesis does: 1
where an answer was a server's error, or had a status or a body that the description does not have.
Afterwards no page may be in use.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import httpx2

from tests.support import serving

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance"
CHECKS += ",response_schema_conformance"


def description(root, model):
    """The server's own, in which the model is the one that is there: others are soon refused."""
    found = httpx2.get(f"{root}/openapi.json").raise_for_status().json()
    for schema in found["components"]["schemas"].values():
        if "model" in schema.get("properties", {}):
            schema["properties"]["model"] = {"type": "string", "enum": [model]}
    return found


def main(flags=None):
    parser = argparse.ArgumentParser(description="Has schemathesis ask a server.")
    parser.add_argument("--schemathesis", required=True, help="the program")
    parser.add_argument("--examples", type=int, default=60, help="of each path")
    args = parser.parse_args(flags)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        model = serving.serve_model(folder, "sft", serving.random_weights(), search=True)
        with serving.serving([model]) as server:
            path = folder / "openapi.json"
            path.write_text(json.dumps(description(server.root, model.name)), encoding="utf-8")
            words = ["run", str(path), "--url", server.root, "--checks", CHECKS]
            words += ["--max-examples", str(args.examples), "--seed", "1"]
            done = subprocess.run([args.schemathesis, *words], cwd=folder)
            serving.wait_until(lambda: serving.pages_used(model) == 0)
            assert server.desk.gate.inside == 0
        print(f"requests by path and status: {dict(server.desk.metrics.requests)}")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
