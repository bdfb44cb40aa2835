"""How settings that name rows or benchmarks are read. Floor 0."""

from stair_jax.config.words import ROW_FILES, split_csv

PREPARED = "prepared"  # for what stage prepare has made in the workdir
WORLDS = ("miniature",)  # the embedded ones; `run.worlds` has what each of them is


def is_world(source: str) -> bool:
    """Returns whether a setting names an embedded world, and neither a file nor the hub."""
    return source in WORLDS


def prompts_among(benchmarks: str) -> tuple[str, ...]:
    """Returns which of `config.evaluate.benchmarks` are files or data sets of prompts.

    The others are names of benchmarks; where the rows lie may follow one, as in "gsm8k:rows.jsonl".
    """
    return tuple(word for word in split_csv(benchmarks) if _is_place(word.partition(":")[0]))


def _is_place(word: str) -> bool:
    return "/" in word or word.endswith(ROW_FILES)
