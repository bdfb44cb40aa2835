"""The words that stand in lists: ml-collections cannot set a tuple of words. Floor 0."""

import re

ROW_FILES = (".json", ".jsonl", ".parquet", ".csv")  # suffixes of files of rows
SELF = "self"  # the run's own model, where a setting names who is asked
TRACKERS = ("tensorboard", "wandb", "trackio")
EXPORTS = ("llamafactory", "openrlhf", "trl")
BASELINES = ("sft", "dpo", "sacpo", "self-rewarding")
INTERVENTIONS = ("cut", "swap", "forge")  # in the steps of an answer
REJECTED, FORGED = "rejected", "forged"
ROOTS = (REJECTED, FORGED)  # where the bad first steps of further trees come from
FRAMINGS, TRANSFORMS = "framings", "transforms"
REWRITES = (FRAMINGS, TRANSFORMS)  # of a round's requests
FAMILIES = (  # of framings, as `data.teaching.framings` has them
    "role_play",
    "hypothetical",
    "fiction",
    "authority",
    "forced_opening",
    "no_refusals",
    "encoded",
    "assembled",
)
ATTACKS = ("pair", "pap", "escalation")  # that answer what a model says
PAP_TECHNIQUES = (  # as `evals.attacks.pap` defines them
    "misrepresentation",
    "logical_appeal",
    "authority_endorsement",
    "expert_endorsement",
    "evidence_based_persuasion",
)
REQUEST = ("temperature", "top_p", "max_tokens")  # what a server may not take


_ADDRESS = re.compile(r"@(?=https?://)")  # a model's name may have an @ of its own


def name_and_address(word: str) -> tuple[str, str]:
    """Returns the two parts of NAME@URL; the address is "" where there is none."""
    name, *address = _ADDRESS.split(word.strip(), maxsplit=1)
    return name, address[0] if address else ""


def split_csv(value: str) -> tuple[str, ...]:
    """Splits a comma-separated setting."""
    return tuple(word.strip() for word in value.split(",") if word.strip())
