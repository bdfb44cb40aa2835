"""What is said where nobody could be asked."""

import enum


class Open(enum.Enum):
    """Says that nobody answered: neither a score nor the lack of one is known."""

    OPEN = "open"


OPEN = Open.OPEN
