"""What the steps of `benchmarks.gpu` run, in full and at toy sizes. Imports NumPy alone."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Case:
    """Shapes of one call of paged attention: R rows, M queries a row and kv head, head dim H."""

    R: int
    M: int
    H: int
    context: int  # tokens of each row at most
    K: int = 8  # kv heads
    Z: int = 16  # tokens of a page

    @property
    def W(self) -> int:
        """Pages of a row."""
        return -(-self.context // self.Z)

    @property
    def label(self) -> str:
        """What the case is called in the figures."""
        return f"R{self.R} M{self.M} H{self.H} x {self.context}"

    def key_bytes(self, itemsize: int) -> int:
        """Returns the bytes of keys and values that one layer's call must read."""
        return 2 * self.R * self.K * self.context * self.H * itemsize


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """How large trees are."""

    trees: int
    in_flight: int
    iterations: int
    prompt: int  # tokens
    step: int  # tokens of a step in the mean; three times as many at most
    rollout: int  # likewise


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineSizes:
    """An engine that is asked for speed."""

    size: str  # a key of `roofline.SPECS`
    slots: int
    page: int  # tokens
    context: int  # tokens; with `page` it makes one width of tables, so one decoding program
    block: int  # tokens of a prompt that one call computes
    prefill_rows: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoding:
    """Loads of the decoding step: (slots in use as a share of all, tokens of context)."""

    loads: tuple[tuple[float, int], ...]  # the first is the one that is claimed
    chunks: int  # of a timed stretch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """Shapes of the training steps."""

    size: str
    rows: int  # where something is recomputed
    kept_rows: int  # with all activations kept
    tokens: int  # of a row
    pairs: int
    pair_tokens: int  # of each side
    head_chunk: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Right:
    """The small model whose results are held against transformers'."""

    size: str
    prompts: int
    longest: int  # tokens of a prompt
    new: int  # tokens
    rows: int  # of the training step, with `longest` tokens each
    slots: int
    context: int
    trees: Shape


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """All sizes."""

    copied: int  # bytes
    side: int  # of the square matrices
    turns: int  # of the empty loop
    cases: tuple[Case, ...]  # of paged attention; the first is the one that plans are tried on
    vocab: int
    sorted_rows: int  # of the top-k
    drawn_rows: int
    top_k: int
    right: Right
    engine: EngineSizes
    decoding: Decoding
    later: int  # tokens that have keys before a later block is computed
    calls: int  # of a block, in a row
    training: Training
    search_engine: EngineSizes
    search: Shape
    generated: tuple[int, int]  # prompts of one call of transformers' generate, new tokens
    large_search: Shape  # on `engine`
    every_plan: int  # of the kernel, 1: all of them


FULL = Sizes(
    copied=2**31,
    side=8192,
    turns=2000,
    cases=(
        Case(256, 4, 128, 600, Z=64),
        Case(64, 16, 128, 600),
        Case(1, 4, 128, 2048),
        Case(256, 4, 64, 600, Z=64),
    ),
    vocab=128_256,
    sorted_rows=256,
    drawn_rows=64,
    top_k=50,
    right=Right(
        size="small",
        prompts=16,
        longest=150,
        new=64,
        rows=4,
        slots=16,
        context=256,
        trees=Shape(trees=12, in_flight=12, iterations=8, prompt=40, step=9, rollout=17),
    ),
    engine=EngineSizes(size="8b", slots=256, page=64, context=1024, block=256, prefill_rows=8),
    decoding=Decoding(loads=((1, 600), (1 / 4, 600), (1 / 256, 600), (1, 128)), chunks=4),
    later=768,
    calls=16,
    training=Training(
        size="1b", rows=16, kept_rows=4, tokens=2048, pairs=4, pair_tokens=1024, head_chunk=1024
    ),
    search_engine=EngineSizes(
        size="1b", slots=256, page=64, context=1024, block=256, prefill_rows=8
    ),
    search=Shape(trees=96, in_flight=96, iterations=12, prompt=300, step=64, rollout=128),
    generated=(64, 128),
    large_search=Shape(trees=64, in_flight=64, iterations=6, prompt=300, step=64, rollout=128),
    every_plan=1,
)
TINY = Sizes(
    copied=2**20,
    side=64,
    turns=20,
    cases=(Case(7, 4, 16, 21, K=2, Z=8), Case(2, 8, 16, 40, K=2, Z=8)),
    vocab=5000,
    sorted_rows=5,
    drawn_rows=3,
    top_k=50,
    right=Right(
        size="least",
        prompts=3,
        longest=13,
        new=6,
        rows=2,
        slots=8,
        context=64,
        trees=Shape(trees=3, in_flight=3, iterations=3, prompt=7, step=3, rollout=5),
    ),
    engine=EngineSizes(size="least", slots=8, page=8, context=128, block=32, prefill_rows=2),
    decoding=Decoding(loads=((1, 30), (1 / 4, 30)), chunks=1),
    later=64,
    calls=2,
    training=Training(
        size="least", rows=4, kept_rows=2, tokens=24, pairs=2, pair_tokens=12, head_chunk=16
    ),
    search_engine=EngineSizes(size="least", slots=8, page=8, context=128, block=32, prefill_rows=2),
    search=Shape(trees=5, in_flight=3, iterations=4, prompt=12, step=5, rollout=8),
    generated=(3, 5),
    large_search=Shape(trees=3, in_flight=2, iterations=3, prompt=12, step=5, rollout=8),
    every_plan=14,
)


def prompt_ids(number: int, vocab: int, tokens: int) -> list[int]:
    """Returns random ids, the same for the same number."""
    return np.random.default_rng(number).integers(0, vocab, tokens).tolist()
