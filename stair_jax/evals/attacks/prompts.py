"""The prompts of attackers and judges: official ones from a folder, else our own.

PAIR's four prompts are sentences of others (patrickrchao/JailbreakingLLMs @ 6379ef705a0f
system_prompts.py, MIT), so the project does not carry them. A user who has them as files, with
{goal} and {target_str} as the only placeholders, names the folder; their hashes say that they are
the very ones. Without a folder our own wording is used, and the protocol has another name, for the
figures cannot be compared.
"""

import dataclasses
import pathlib
from collections.abc import Mapping

from stair_jax.evals.prompt_files import fill, official, own

__all__ = ["PairPrompts", "fill", "pap_attacker"]

ATTACKERS = ("pair_attacker_roleplay", "pair_attacker_logical_appeal", "pair_attacker_authority")
JUDGE = "pair_judge_system"
PAP_ATTACKER = "pap_attacker"
SHA256 = {
    "pair_attacker_roleplay": "9905ee92ee21c937e85e97ac8381f4a98a822aae8bda4845f230cda6ccce9bdd",
    "pair_attacker_logical_appeal": (
        "7d1f9eb0c6394d7be88fe3ac4f80e45209eb2aa16552e7e941ec5383026157b6"
    ),
    "pair_attacker_authority": "d101d0966400fcf35201692503b2702a27e9d8ab03f2349d2ab40f8ea159d775",
    "pair_judge_system": "9be96058a93c83658c571dad93ae29d7c96b3f06c92a4ecbf1542cac0670b8aa",
}
_OWN = pathlib.Path(__file__).parent / "templates"


@dataclasses.dataclass(frozen=True)
class PairPrompts:
    """The system prompts of PAIR.

    Attributes:
      protocol: "pair" with the official prompts, "pair-own-words" with ours.
      attackers: templates by name, in the order in which streams take them in turn.
      judge: template of the judge's system prompt.
    """

    protocol: str
    attackers: Mapping[str, str]
    judge: str

    @classmethod
    def load(cls, folder: str | pathlib.Path = "") -> "PairPrompts":
        """Reads the official prompts of a folder; ours where it is empty.

        Raises:
          ValueError: where a file cannot be read or is not the official one, naming it.
        """
        place = pathlib.Path(folder)
        texts = {
            name: official(place, name, SHA256[name]) if folder else own(_OWN, name)
            for name in (*ATTACKERS, JUDGE)
        }
        attackers = {name: texts[name] for name in ATTACKERS}
        return cls("pair" if folder else "pair-own-words", attackers, texts[JUDGE])


def pap_attacker() -> str:
    """Returns our template of PAP's attacker: {goal}, {technique}, {definition}."""
    return own(_OWN, PAP_ATTACKER)
