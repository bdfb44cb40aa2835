"""How far stage sft has taught STAIR's format: where its tags stand at the places of the rows."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from stair_jax.config.schema import TrainConfig
from stair_jax.data.examples import SftExample
from stair_jax.run.workdir import Run
from stair_jax.text import TAGS, Codec
from stair_jax.train import standing
from stair_jax.train.logprobs import Scorer
from stair_jax.train.standing import TokenRank

log = logging.getLogger(__name__)

FIGURES = ("tags/nats", "tags/rank", "tags/in_top_k")  # means over the places of all tags
ROWS = 64  # that are looked at, evenly from all: some hundred places; ours
IN_REACH = 0.5  # of a tag's places, where a search could draw it: fewer are warned of; ours

ADVICE = (
    "teach the format longer: more rows (config.data.sft), config.sft.train.epochs, or a higher"
    " config.sft.train.lr or new_rows_lr, with --config.redo=sft"
)


def measure(
    run: Run,
    name: str,
    codec: Codec,
    examples: Sequence[SftExample],
    *,
    scorer: Scorer,
    params: Any,
    base: Any,
    config: TrainConfig,
    step: int,
) -> dict[str, float]:
    """Notes where the tags stand, in metrics and log; returns it for the lineage.

    Args:
      run: whose `search.top_k` says what can be drawn.
      name: of the trained model's artefact.
      codec: of the model.
      examples: of stage 1, those set aside where there are any.
      scorer: the one that training used.
      params: what was trained.
      base: the frozen weights under adapters; None without.
      config: of the trainer.
      step: of the optimiser, whose weights these are.
    """
    looked = examples[:: max(1, -(-len(examples) // ROWS))]
    rows = {str(i): (x.prompt, x.response) for i, x in enumerate(looked)}
    names = {codec.tokenizer.convert_tokens_to_ids(tag): tag for tag in TAGS}
    places = standing.ranks_of(
        names.keys(),
        scorer,
        params,
        rows,
        base=base,
        config=config,
        mesh=run.mesh,
        pad_id=codec.pad_id,
    )
    if not places:
        log.warning("%s: no row has a tag, so that nothing teaches the format of a search", name)
        return {}
    top_k = run.config.search.top_k or codec.size
    found = _figures(places, top_k)
    run.metrics.rewind(f"{name}/tags", -1)
    run.metrics.log(f"{name}/tags", step, found)
    log.info("%s: %s, in %d places of %d rows", name, in_words(found), len(places), len(looked))
    _warn(name, places, names, top_k)
    return found


def _figures(places: Sequence[TokenRank], top_k: int) -> dict[str, float]:
    figures = (
        sum(place.nats for place in places),
        sum(place.rank for place in places),
        sum(place.rank <= top_k for place in places),
    )
    return {name: total / len(places) for name, total in zip(FIGURES, figures, strict=True)}


def in_words(found: Mapping[str, Any]) -> str:
    """Returns the figures of `measure`, which stand among others, for a line of text."""
    nats, rank, in_reach = (found[name] for name in FIGURES)
    return (
        f"where a tag is due it stands at {nats:.2f} nats and rank {rank:,.1f},"
        f" {in_reach:.0%} within search.top_k"
    )


def _warn(name: str, places: Sequence[TokenRank], names: Mapping[int, str], top_k: int) -> None:
    """Warns of tags that a search could hardly draw where they are due."""
    out = []
    for token, tag in names.items():
        ranks = [place.rank for place in places if place.token == token]
        drawn = sum(rank <= top_k for rank in ranks)
        if ranks and drawn < IN_REACH * len(ranks):
            out.append(f"{tag} ({drawn} of {len(ranks)})")
    if out:
        log.warning(
            "%s: search.top_k=%d can seldom draw where it is due: %s; %s",
            name,
            top_k,
            ", ".join(out),
            ADVICE,
        )
