"""Holds lm-evaluation-harness, asking our server, against our own evaluation of the same rows.

    python -m tests.clients.lm_eval_served WORKDIR --harness PYTHON --data DIR [--rows N]

WORKDIR is of a run that has evaluated `base` on HHH by log-probs and on the first rows of GSM8K, as
`tests.clients.lm_eval` makes one; PYTHON that of an environment with `lm-eval[api]`; DIR holds
`hhh/hhh_alignment.jsonl` and `gsm8k/test.jsonl`. The run is served, and the harness asks it: for
HHH through `local-completions` (echo, log-probs, token ids of our own `/tokenize`), for GSM8K
through `local-chat-completions`; with `--rows`, the first N of each. Ends with a line a task; exit
1 where choices, texts or numbers differ, or a log-prob by more than `lm_eval.TOLERANCE` of its
size. Needs no network. Takes minutes.
"""

import argparse
import contextlib
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile

from tests.clients import lm_eval
from tests.clients.lm_eval import CONTEXT, TASKS, rows_of, run

SLOTS, TOGETHER = 8, 8
_URL = re.compile(r"(http://\S+/v1) ")
# By task: how the harness asks, and where.
ASKED = {
    "hhh_local": ("local-completions", "completions", ["tokenizer_backend=remote"]),
    "gsm8k_local": ("local-chat-completions", "chat/completions", []),
}


@contextlib.contextmanager
def served(place, *flags):
    """Yields the address of `stair-jax serve`; ends it as an administrator would."""
    words = ["serve", str(place), "--port=0", "--compile_later", f"--slots={SLOTS}", *flags]
    code = "from stair_jax.main import command_line; command_line()"
    # A server that other programs of this test may not stop, whose log goes where ours does.
    server = subprocess.Popen(
        [sys.executable, "-c", code, *words],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert server.stderr
        for line in server.stderr:
            print(line, end="", file=sys.stderr)
            if found := _URL.search(line):
                break
        else:
            raise SystemExit("the server did not start")
        yield found[1]
    finally:
        server.send_signal(signal.SIGTERM)
        _, rest = server.communicate(timeout=120)
        print(rest, end="", file=sys.stderr)
    if server.returncode:
        raise SystemExit(f"the server ended with {server.returncode}")


def ask_harness(python, folder, url, rows):
    """Has the harness ask the server about the first rows; returns its samples by task."""
    for name, (kind, path, more) in ASKED.items():
        options = [
            "model=base",
            f"base_url={url}/{path}",
            f"num_concurrent={TOGETHER}",
            f"max_length={CONTEXT - 1}",
            "timeout=1200",
            *more,
        ]
        asked = {
            "model": kind,
            "model_args": ",".join(options),
            "tasks": name,
            "include_path": folder,
            "output_path": folder / "theirs",
        }
        flags = [str(word) for key, value in asked.items() for word in (f"--{key}", value)]
        flags += ["--limit", str(rows)] if rows else []
        chat = ["--apply_chat_template"] if "chat" in kind else []
        offline = dict.fromkeys(("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"), "1")
        run([python, "-m", "lm_eval", "run", *flags, "--log_samples", *chat], **offline)
    found = {}
    for name in TASKS:
        (path,) = (folder / "theirs").rglob(f"samples_{name}_*.jsonl")
        found[name] = {row["doc_id"]: row for row in rows_of(path)}
    return found


def main(flags=None):
    parser = argparse.ArgumentParser(description="Holds lm-eval, through the server, against ours.")
    parser.add_argument("workdir", type=pathlib.Path)
    parser.add_argument("--harness", required=True, help="Python with lm-eval[api]")
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--rows", type=int, help="of each task; all by default")
    args = parser.parse_args(flags)
    answers = args.workdir.resolve() / "evals" / "base"
    names = "hhh_likelihood", "gsm8k"
    hhh, gsm8k = (rows_of(answers / f"{name}.jsonl")[: args.rows] for name in names)
    os.environ.pop("STAIR_JAX_API_KEY", None)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        lm_eval.prepare(folder, args.data.resolve(), len(gsm8k))
        with served(args.workdir.resolve(), "--models=base") as url:
            theirs = ask_harness(args.harness, folder, url, args.rows)
        same = [
            lm_eval.compare_options(hhh, theirs["hhh_local"]),
            lm_eval.compare_answers(gsm8k, theirs["gsm8k_local"]),
        ]
    return 0 if all(same) else 1


if __name__ == "__main__":
    sys.exit(main())
