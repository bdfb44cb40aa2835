"""JailBreakV-28k: attacks on harmful requests; those by text are used, those by an image are not.

Source: Luo et al. 2024 (arXiv 2404.03027), JailbreakV-28K/JailBreakV-28k, MIT. STAIR (arXiv
2502.02384, A.1) takes requests of three sources, GPT-Generate, Handcraft and HH-RLHF, for others,
such as AdvBench, are benchmarks. The name of the split on the hub is the subset's.
"""

import re

from stair_jax.data.corpus import Corpus, Split
from stair_jax.data.seeds import Fields, Seed, Unusable

TITLE = "JailbreakV-28k"
SOURCES = ("GPT-Generate", "Handcraft", "HH-RLHF")
_BY_TEXT = ("template", "persuade", "logic")  # of `format`; figstep and query-relevant are images


def _plain(word: str) -> str:
    return re.sub(r"[^a-z0-9]", "", word.lower())


_WANTED = {_plain(source) for source in SOURCES}


def _seed(where: str, row: Fields) -> Seed:
    del where
    attack = row.text("format")
    if _plain(attack) not in _BY_TEXT or not row.truth("transfer_from_llm"):
        raise Unusable("an attack by an image")
    origin = row.text("from")
    if _plain(origin) not in _WANTED:
        raise Unusable(f"a request of {origin}, none of {', '.join(SOURCES)}")
    meta = {"goal": row.text("redteam_query"), "format": attack, "from": origin}
    return Seed(
        id=row.id(), question=row.text("jailbreak_query"), type="safety", source=TITLE, meta=meta
    )


CORPUS = Corpus(
    name="jailbreakv",
    title=TITLE,
    licence="MIT",
    train=Split(("jailbreakv/JailBreakV_28K/JailBreakV_28K.csv",), "JailBreakV_28K"),
    hub="JailbreakV-28K/JailBreakV-28k",
    subset="JailBreakV_28K",
    convert=_seed,
)
