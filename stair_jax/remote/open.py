"""The answer of a judge that could not be reached."""

import enum


class Open(enum.Enum):
    """No answer came: neither a score nor the lack of one is known."""

    OPEN = "open"


OPEN = Open.OPEN
