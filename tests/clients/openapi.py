"""Has schemathesis ask a server everything that its OpenAPI allows, and much that it does not.

    python -m tests.clients.openapi --schemathesis PROGRAM [--examples N]

PROGRAM is the command of an environment with schemathesis. The server is the one of the tests: the
product over a model of random weights, on a socket of this machine. Ends as schemathesis does: 1
where an answer was a server's error, or had a status or a body that the description does not have.
Afterwards no page may be in use.
"""

import argparse
import pathlib
import subprocess
import sys
import tempfile

from tests.support import serving

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance"
CHECKS += ",response_schema_conformance"


def main(flags=None):
    parser = argparse.ArgumentParser(description="Has schemathesis ask a server.")
    parser.add_argument("--schemathesis", required=True, help="the program")
    parser.add_argument("--examples", type=int, default=60, help="of each path")
    args = parser.parse_args(flags)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        # A name that is likely to be tried.
        model = serving.serve_model(folder, "0", serving.random_weights(), search=True)
        with serving.serving([model]) as server:
            words = ["run", f"{server.root}/openapi.json", "--checks", CHECKS]
            words += ["--max-examples", str(args.examples), "--seed", "1"]
            done = subprocess.run([args.schemathesis, *words], cwd=folder)
            serving.wait_until(lambda: serving.pages_used(model) == 0)
            assert server.desk.gate.inside == 0
        print(f"requests by path and status: {dict(server.desk.metrics.requests)}")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
