"""A request that has pages: at hand, or in a slot."""

import dataclasses

import numpy as np

from stair_jax.engine import batch
from stair_jax.engine.request import Request, key_of


@dataclasses.dataclass(eq=False)
class Run:
    """A request that has pages."""

    request: Request
    pages: list[int]
    columns: np.ndarray  # [C] int32, its row of the packed batch
    limit: int  # new tokens at most
    age: int  # rises with every request that gets pages
    ids: list[int] = dataclasses.field(default_factory=list)
    logps: list[float] = dataclasses.field(default_factory=list)
    withdrawn: bool = False

    @classmethod
    def of(cls, request: Request, pages: list[int], *, stop: int, limit: int, age: int) -> "Run":
        """Returns a run that has drawn nothing; `stop` is the index of the request's stop set."""
        ids, how = request.prefix.ids, request.sampling
        columns = batch.row(
            last=ids[-1], length=len(ids) - 1, made=0, limit=limit, active=1, stop=stop,
            top_k=how.top_k, key=key_of(request.key), temperature=how.temperature,
            top_p=how.top_p, min_p=how.min_p,
        )  # fmt: skip
        return cls(request, pages, columns, limit, age)

    @property
    def length(self) -> int:
        """Tokens that have keys."""
        return len(self.request.prefix.ids) - 1 + len(self.ids)

    def grow(self, tokens: list[int], logps: list[float]) -> None:
        """Takes up new tokens."""
        self.ids += tokens
        if self.request.logps:
            self.logps += logps
        self.columns[: len(batch.CHANGING)] = self.ids[-1], self.length, len(self.ids)
