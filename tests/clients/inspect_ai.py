"""Holds inspect_ai against our own evaluation, on an exported model and the same rows.

    python -m tests.clients.inspect_ai CHECKPOINT --inspect PYTHON --data DIR [--rows N]

CHECKPOINT is a Hugging Face folder; PYTHON that of an environment with torch, `inspect_ai`,
transformers and accelerate; DIR holds `gsm8k/test.jsonl`. The checkpoint is evaluated and exported
by the product, then inspect_ai asks the export the first N questions of GSM8K through its Hugging
Face provider, greedily, and scores the last number of each answer. Ends with a line; exit 1 where
texts, verdicts or the accuracy differ. Numbers are compared too and may differ: inspect_ai takes
"60%" for no number. Needs no network. Takes minutes.
"""

import argparse
import json
import pathlib
import re
import sys
import tempfile

from stair_jax.evals.benchmarks import gsm8k
from tests.clients.lm_eval import CONTEXT, TOKENS, rows_of, run, write

# Runs under the other Python: rows, model, folder of logs, tokens of an answer.
ASKED = """
import json, sys

from inspect_ai import Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.model import GenerateConfig, get_model
from inspect_ai.scorer import match
from inspect_ai.solver import generate

rows, folder, logs, tokens = sys.argv[1:]
samples = [
    Sample(id=number, input=row["question"], target=row["answer"].split("####")[-1].strip())
    for number, row in enumerate(map(json.loads, open(rows, encoding="utf-8")), start=1)
]
model = get_model("hf/local", model_path=folder, device="cpu", do_sample=False, dtype="float32")
task = Task(
    name="gsm8k_local",
    dataset=samples,
    solver=generate(),
    scorer=match(numeric=True),
    config=GenerateConfig(max_tokens=int(tokens), max_connections=1),
)
(log,) = eval(task, model=model, log_dir=logs, log_format="json", display="plain")
sys.exit(log.status != "success")
"""


def evaluate(checkpoint, folder):
    """Evaluates and exports the checkpoint with the product."""
    settings = {
        "model.checkpoint": checkpoint,
        "workdir": folder / "run",
        "stages": "evaluate,export",
        "export.model": "base",
        "evaluate.models": "base",
        "evaluate.max_tokens": TOKENS,
        "evaluate.benchmarks": f"gsm8k:{folder / 'rows.jsonl'}",
        "engine.max_context": CONTEXT,
        "engine.pool_bytes": 1_500_000_000,
    }
    flags = [f"--config.{key}={value}" for key, value in settings.items()]
    run([sys.executable, "-m", "stair_jax.main", "--config=configs/smollm2.py", *flags])


def ask_inspect(python, folder):
    """Has inspect_ai ask the export; returns its log."""
    (folder / "asked.py").write_text(ASKED, encoding="utf-8")
    export, logs = folder / "run" / "export" / "base", folder / "logs"
    offline = dict.fromkeys(("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"), "1")
    run([python, folder / "asked.py", folder / "rows.jsonl", export, logs, str(TOKENS)], **offline)
    (path,) = logs.glob("*.json")
    return json.loads(path.read_text(encoding="utf-8"))


def compare(ours, accuracy, log):
    """Prints how many texts and verdicts are equal; returns whether all are."""
    theirs = {int(sample["id"]): sample for sample in log["samples"]}
    texts = numbers = verdicts = 0
    for row in ours:
        sample = theirs[int(row["id"].rpartition("/")[2])]
        texts += sample["output"]["choices"][0]["message"]["content"].strip() == (
            row["response"].removesuffix("<|im_end|>").strip()
        )
        said = sample["scores"]["match"]["answer"]
        number = float(said) if re.fullmatch(r"-?\d*\.?\d+", said) else None
        numbers += number == gsm8k.number_of(row["response"])
        verdicts += (sample["scores"]["match"]["value"] == "C") == (row["outcome"] == "correct")
    (score,) = log["results"]["scores"]
    found = score["metrics"]["accuracy"]["value"]
    print(
        f"gsm8k: {texts} of {len(ours)} answers are equal, {numbers} of {len(ours)} numbers,"
        f" {verdicts} of {len(ours)} verdicts;"
        f" accuracy {found:.3f} of inspect_ai {log['eval']['packages']['inspect_ai']},"
        f" {accuracy:.3f} of ours"
    )
    return texts == verdicts == len(ours) == len(theirs) > 0 and found == accuracy


def main(flags=None):
    parser = argparse.ArgumentParser(description="Holds inspect_ai against our evaluation.")
    parser.add_argument("checkpoint", type=pathlib.Path)
    parser.add_argument("--inspect", required=True, help="Python with inspect_ai and torch")
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--rows", type=int, default=8, help="of GSM8K")
    parser.add_argument("--keep", type=pathlib.Path, help="where inspect_ai's log is kept")
    args = parser.parse_args(flags)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        rows = rows_of(args.data.resolve() / "gsm8k" / "test.jsonl")[: args.rows]
        write(folder / "rows.jsonl", rows)
        evaluate(args.checkpoint.resolve(), folder)
        log = ask_inspect(args.inspect, folder)
        if args.keep:
            args.keep.write_text(json.dumps(log), encoding="utf-8")
        evals = folder / "run" / "evals"
        results = json.loads((evals / "results.json").read_text(encoding="utf-8"))
        accuracy = results["base"]["gsm8k"]["accuracy"]["value"]
        same = compare(rows_of(evals / "base" / "gsm8k.jsonl"), accuracy, log)
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
