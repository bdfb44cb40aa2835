"""What a server takes on, and whom it answers."""

import dataclasses
import math

from stair_jax.serve.errors import ApiError

_SOONEST_S, _LATEST_S = 1, 60  # of Retry-After
_WEIGHT = 0.1  # of the newest request in the mean of their times


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """Of one server.

    Attributes:
      slots: sequences that all models' engines decode together.
      queue: sequences that may wait for these, beyond them.
      body_bytes: of a request at most.
      body_s: seconds in which a request's body must have come.
      max_tokens: of an answer at most; 0: what the context has room for.
      timeout_s: seconds that a request may take.
      drain_s: seconds that requests have to end after SIGTERM.
      prefix_least: what the reward model must find, 0 to 1, of a beginning that a client gives an
        answer; None: clients may give none.
    """

    slots: int
    queue: int = 256
    body_bytes: int = 4 << 20
    body_s: float = 30.0
    max_tokens: int = 0
    timeout_s: float = 600.0
    drain_s: float = 60.0
    prefix_least: float | None = None


class Gate:
    """Counts the sequences that requests have asked for, and lets no more in than there may be.

    Args:
      limits: of the server.
    """

    def __init__(self, limits: Limits):
        self.inside = 0
        self._limits = limits
        self._mean_s = 0.0  # that a request took

    def enter(self, sequences: int) -> None:
        """Takes places for as many sequences as a request asks for.

        Raises:
          ApiError: 429 where there is no room, with the seconds to wait; 400 where there never is.
        """
        most = self._limits.slots + self._limits.queue
        if sequences > most:
            raise ApiError(400, f"{sequences} sequences in one request, expected at most {most}")
        if self.inside + sequences > most:
            wait = str(self.retry_after)
            raise ApiError(
                429,
                f"{self.inside} sequences are under way or wait, and {most} is the limit; try again"
                f" in {wait} s",
                code="rate_limit_exceeded",
                headers={"Retry-After": wait},
            )
        self.inside += sequences

    def leave(self, sequences: int, seconds: float) -> None:
        """Gives places back, after so many seconds."""
        self.inside -= sequences
        self._mean_s += _WEIGHT * (seconds - self._mean_s) if self._mean_s else seconds

    @property
    def retry_after(self) -> int:
        """Whole seconds in which those that wait now will probably have gone into slots."""
        rounds = max(1.0, (self.inside - self._limits.slots) / self._limits.slots)
        return min(max(math.ceil(self._mean_s * rounds), _SOONEST_S), _LATEST_S)
