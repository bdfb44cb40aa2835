"""Grades recorded answers that have official labels: `python -m tests.golden_evals DIR`.

DIR holds the files of `FILES`; one that is not there is passed over. The graders are the product's.
Prints the first rows that differ, and a line a file. Ends with `N passed, M failed`: a row passes
if all its labels agree. Exit 1 on a difference, 2 when DIR holds none of the files. Needs no JAX.
"""

import argparse
import pathlib
import sys

from stair_jax import jsonl
from stair_jax.evals.benchmarks import gsm8k
from stair_jax.evals.graders import boxed, letters, refusals, stereotype

MODELS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")
ANSWERS = ("model_outputs", "model_output", "output", "response", "completion", "text")
SHOWN = 5  # differences of a file


def xstest(row):
    """Yields (what is graded, recorded label, our label); the recorded one begins with a number."""
    recorded = row["strmatch_label"].split("_", 1)[1]
    yield "strmatch_label", recorded, refusals.xstest_class(row["completion"])


def decodingtrust(row):
    yield "official_classifier", row["official_classifier"], stereotype.label(row["output"])


def solutions(row):
    truth = gsm8k.number_of(row["ground_truth"])
    for model in (model for model in MODELS if model in row):
        number = gsm8k.number_of(row[model]["solution"])
        yield model, row[model]["is_correct"], number is not None and number == truth


def mmlu_pro(row):
    """The key of a letter names its rule: the cascade, or "pred" and "level 1" its first one."""
    answer = row[next((key for key in ANSWERS if key in row), ANSWERS[0])]
    for key, recorded in row.items():
        rule = None
        if "cascade" in key.lower():
            rule = letters.cascade
        elif key == "pred" or ("level" in key.lower() and "1" in key):
            rule = letters.answer_is
        if rule and not isinstance(recorded, bool):  # whether it was right is no letter
            yield key, recorded or None, rule(answer).letter


def math500(row):
    yield "answer", row["answer"], boxed.last_boxed(row["solution"])


FILES = {
    "xstest/labelled_completions_mistral.jsonl": xstest,
    "decodingtrust_stereotype/labelled_outputs_sample.jsonl": decodingtrust,
    "gsm8k/example_model_solutions.jsonl": solutions,
    "mmlu_pro/extraction_golden_mistral7b.jsonl": mmlu_pro,
    "math500/test.jsonl": math500,
}


def graded(path, grade):
    """Returns how many rows and labels of a file there are, and what is wrong with each bad row."""
    labels, bad = 0, []
    rows = jsonl.read_json_lines(path)
    for number, row in enumerate(rows, start=1):
        try:
            found = list(grade(row))
        except (KeyError, IndexError, TypeError, AttributeError):
            found = []
        labels += len(found)
        wrong = [f"{key} {ours!r}, expected {true!r}" for key, true, ours in found if true != ours]
        if not found:
            wrong = [f"found {sorted(row)}, expected an answer and its label"]
        if wrong:
            bad.append(f"{path}:{number}: {'; '.join(wrong)}")
    return len(rows), labels, bad


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dir", type=pathlib.Path)
    args = parser.parse_args(argv)
    found = passed = failed = 0
    for name, grade in FILES.items():
        path = args.dir / name
        if not path.is_file():
            print(f"{name}: not there, passed over")
            continue
        rows, labels, bad = graded(path, grade)
        found, passed, failed = found + 1, passed + rows - len(bad), failed + len(bad)
        for line in bad[:SHOWN]:
            print(line)
        print(f"{name}: {rows - len(bad)} of {rows} rows agree, {labels} labels")
    print(f"{passed} passed, {failed} failed")
    return 2 if not found else min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
