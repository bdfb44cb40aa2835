"""What an engine counts, and the shares that a reader wants of it."""

from collections.abc import Mapping

COUNTERS = (
    "delivered",  # tokens of finished requests
    "decoded",  # tokens drawn, those of preempted requests included
    "prefilled",  # tokens whose keys were computed without drawing
    "reused",  # tokens whose keys a request found computed
    "preempted",
    "preempted_tokens",  # requests sent back, and what they had drawn
    "chunks",
    "steps",
    "busy_slots",  # slot-steps that drew a token
    "idle_slots",  # slot-steps that did not, for want of requests
    "overshoot",  # slot-steps that did not, though requests waited for the chunk to end
    "host_s",  # seconds between chunks
    "device_s",  # seconds that chunks took
)


def shares(counters: Mapping[str, int | float]) -> dict[str, float]:
    """Returns shares of the counters, in [0, 1]; those of nothing are left out.

    That of reuse is of all tokens whose keys were needed, that of preemption of the tokens drawn;
    busy, idle and overshoot are shares of slot-steps and sum to 1. `host_ms` is the mean gap
    between two chunks.
    """
    c = counters
    slot_steps = c["busy_slots"] + c["idle_slots"] + c["overshoot"]
    parts = {
        "reuse_share": (c["reused"], c["reused"] + c["prefilled"]),
        "preempted_share": (c["preempted_tokens"], c["decoded"]),
        "busy_share": (c["busy_slots"], slot_steps),
        "idle_share": (c["idle_slots"], slot_steps),
        "overshoot_share": (c["overshoot"], slot_steps),
        "host_ms": (1e3 * c["host_s"], c["chunks"]),
    }
    return {name: a / b for name, (a, b) in parts.items() if b}
