"""One row of each kind that goes to disk."""

from stair_jax.records import Node, Pair, Prompt, Response, SftRow, Tree

PROMPT = Prompt(id="a", question="q ü", type="safety", ground_truth="7", meta={"kind": "sum"})
ROOT = Node(
    parent=-1,
    ids=(),
    text="",
    depth=0,
    visits=3,
    value_sum=1.5,
    reward=None,
    terminal=False,
    p=1.0,
    tag="0",
)
LEAF = Node(
    parent=0,
    ids=(4, 5),
    text="x",
    depth=1,
    visits=2,
    value_sum=3.0,
    reward=1.5,
    terminal=True,
    p=0.25,
    tag="0.0",
)
ROWS = [
    PROMPT,
    SftRow(id="s", question="q", response="r"),
    Tree(prompt=PROMPT, nodes=(ROOT, LEAF), counters={"rollouts": 2.0}),
    Pair(
        id="p",
        question="q",
        type="helpfulness",
        prefix=(1,),
        chosen=(2, 3),
        rejected=(4,),
        chosen_value=2.0,
        rejected_value=1.0,
        chosen_terminal=True,
        rejected_terminal=False,
        chosen_text="c",
        rejected_text="r",
        depth=2,
    ),
    Response(id="r", question="q", type="safety", ids=(1, 2), text="t", value=1.0, terminal=True),
]
