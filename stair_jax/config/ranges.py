"""Between which numbers a setting must lie. Floor 0."""

import dataclasses
import math

MOST = 2**31 - 1  # what an int32 holds; no sensible number of anything is larger


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`; `above` and `below` leave these out."""

    low: float | int
    high: float | int = MOST
    above: bool = False
    below: bool = False

    def __contains__(self, x: float | int) -> bool:
        if not math.isfinite(x):
            return False
        low = x > self.low if self.above else x >= self.low
        return low and (x < self.high if self.below else x <= self.high)

    def __str__(self) -> str:
        if self.high != MOST:
            return (
                f"a number in {'(['[not self.above]}{self.low}, {self.high}{')]'[not self.below]}"
            )
        least = f"a number above {self.low}" if self.above else f"{self.low} or more"
        return f"{least}, at most {MOST}"


ABOVE_0, FROM_0, FROM_1, FROM_2 = Range(0, above=True), Range(0), Range(1), Range(2)
SHARE, PART = Range(0, 1), Range(0, 1, below=True)  # the whole, or less than that
MASS = Range(0, 1, above=True)  # of a nucleus
