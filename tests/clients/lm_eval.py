"""Holds lm-evaluation-harness against our own evaluation, on an exported model and the same rows.

    python -m tests.clients.lm_eval CHECKPOINT --harness PYTHON --data DIR [--rows N]

CHECKPOINT is a Hugging Face folder; PYTHON that of an environment with torch and `lm-eval[hf]`; DIR
holds `hhh/hhh_alignment.jsonl` and `gsm8k/test.jsonl`. The checkpoint is evaluated and exported by
the product, then the harness reads the export: log-probs of the two answers of each row of HHH, and
greedy answers to the first N of GSM8K. Ends with a line a task; exit 1 where choices, texts or
numbers differ, or a log-prob by more than `TOLERANCE` of its size. Needs no network. Takes minutes.
"""

import argparse
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from typing import Any

from stair_jax.evals.benchmarks import gsm8k

TOLERANCE = 1e-4  # of a sum over hundreds of tokens in float32, on two different backends
TOKENS, CONTEXT = 64, 1536
_NUMBER = r"(-?[$0-9.,]{2,})|(-?[0-9]+)"  # the harness's own "flexible-extract"
TASKS: dict[str, dict[str, Any]] = {
    "hhh_local": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{input}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": 0,
        "metric_list": [{"metric": "acc"}],
    },
    "gsm8k_local": {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer.split('####')[-1].strip()}}",
        "generation_kwargs": {"until": ["\0"], "do_sample": False, "max_gen_toks": TOKENS},
        "filter_list": [
            {
                "name": "flexible-extract",
                "filter": [
                    {"function": "regex", "group_select": -1, "regex_pattern": _NUMBER},
                    {"function": "take_first"},
                ],
            }
        ],
        "metric_list": [{"metric": "exact_match"}],
    },
}


def rows_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def run(command, **environment):
    print("$", *command, flush=True)
    subprocess.run(command, check=True, env=os.environ | environment)


def prepare(folder, data, count):
    """Writes tasks and rows: HHH's answers as a list, the better one first."""
    hhh = []
    for row in rows_of(data / "hhh" / "hhh_alignment.jsonl"):
        choices = sorted(row["target_scores"], key=lambda option: -row["target_scores"][option])
        hhh.append({"input": row["input"], "choices": choices})
    write(folder / "hhh_local.jsonl", hhh)
    write(folder / "gsm8k_local.jsonl", rows_of(data / "gsm8k" / "test.jsonl")[:count])
    for name, task in TASKS.items():
        files = {"data_files": {"test": str(folder / f"{name}.jsonl")}}
        whole = {"task": name, "dataset_path": "json", "dataset_kwargs": files, **task}
        # JSON is YAML.
        (folder / f"{name}.yaml").write_text(json.dumps({**whole, "test_split": "test"}))


def evaluate(checkpoint, folder, data):
    """Evaluates and exports the checkpoint with the product."""
    places = (
        f"hhh_likelihood:{data / 'hhh/hhh_alignment.jsonl'},gsm8k:{folder / 'gsm8k_local.jsonl'}"
    )
    settings = {
        "model.checkpoint": checkpoint,
        "workdir": folder / "run",
        "stages": "evaluate,export",
        "export.model": "base",
        "evaluate.models": "base",
        "evaluate.max_tokens": TOKENS,
        "evaluate.benchmarks": places,
        "engine.max_context": CONTEXT,
        "engine.pool_bytes": 1_500_000_000,
    }
    flags = [f"--config.{key}={value}" for key, value in settings.items()]
    run([sys.executable, "-m", "stair_jax.main", "--config=configs/smollm2.py", *flags])


def ask_harness(python, folder):
    """Has the harness read the export; returns its samples by task."""
    model = f"pretrained={folder / 'run/export/base'},dtype=float32"
    offline = dict.fromkeys(("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"), "1")
    for name in TASKS:
        chat = ["--apply_chat_template"] if name == "gsm8k_local" else []
        asked = {
            "model": "hf",
            "model_args": model,
            "tasks": name,
            "include_path": folder,
            "device": "cpu",
            "batch_size": 1,
            "output_path": folder / "theirs",
        }
        flags = [str(word) for key, value in asked.items() for word in (f"--{key}", value)]
        run(
            [python, "-m", "lm_eval", "run", *flags, "--log_samples", *chat],
            **offline,
        )
    found = {}
    for name in TASKS:
        (path,) = (folder / "theirs").rglob(f"samples_{name}_*.jsonl")
        found[name] = {row["doc_id"]: row for row in rows_of(path)}
    return found


def compare_options(ours, theirs):
    apart, agree = 0.0, 0
    for row in ours:
        sample = theirs[int(row["id"].rpartition("/")[2]) - 1]
        logps = [
            float(reply[0][0] if isinstance(reply[0], list) else reply[0])
            for reply in sample["resps"]
        ]
        apart = max(apart, *(abs(a - b) / abs(b) for a, b in zip(row["logps"], logps, strict=True)))
        agree += row["logps"].index(max(row["logps"])) == logps.index(max(logps))
    print(
        f"hhh: {agree} of {len(ours)} choices agree, log-probs apart by {apart:.1e} of their size"
    )
    return agree == len(ours) > 0 and apart <= TOLERANCE


def compare_answers(ours, theirs):
    texts = numbers = 0
    for row in ours:
        sample = theirs[int(row["id"].rpartition("/")[2]) - 1]
        said = re.split(r"<\|im_end\|>|<\|eot_id\|>", sample["resps"][0][0])[0].strip()
        texts += said == row["response"].strip()
        bare = sample["filtered_resps"][0].replace("$", "").replace(",", "").rstrip(".")
        extracted = float(bare) if re.fullmatch(r"-?\d*\.?\d+", bare) else None
        numbers += extracted == gsm8k.number_of(row["response"])
    print(f"gsm8k: {texts} of {len(ours)} answers are equal, {numbers} of {len(ours)} numbers")
    return texts == numbers == len(ours) > 0


def main(flags=None):
    parser = argparse.ArgumentParser(description="Holds lm-eval against our evaluation.")
    parser.add_argument("checkpoint", type=pathlib.Path)
    parser.add_argument("--harness", required=True, help="Python with lm-eval[hf]")
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--rows", type=int, default=40, help="of GSM8K")
    args = parser.parse_args(flags)
    with tempfile.TemporaryDirectory() as name:
        folder, data = pathlib.Path(name), args.data.resolve()
        prepare(folder, data, args.rows)
        evaluate(args.checkpoint.resolve(), folder, data)
        theirs = ask_harness(args.harness, folder)
        answers = folder / "run" / "evals" / "base"
        same = [
            compare_options(rows_of(answers / "hhh_likelihood.jsonl"), theirs["hhh_local"]),
            compare_answers(rows_of(answers / "gsm8k.jsonl"), theirs["gsm8k_local"]),
        ]
    return 0 if all(same) else 1


if __name__ == "__main__":
    sys.exit(main())
