"""Rows of preference pairs."""

from stair_jax.records import Pair


def pair(i, terminal=True, question="why?"):
    return Pair(
        id=f"x/{i}",
        question=question,
        type="safety",
        prefix=(1,),
        chosen=(2,),
        rejected=(3,),
        chosen_value=1.0,
        rejected_value=-1.0,
        chosen_terminal=terminal,
        rejected_terminal=True,
        chosen_text=f"shared better {i}",
        rejected_text=f"shared worse {i}",
        depth=2,
    )
