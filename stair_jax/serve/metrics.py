"""The server's figures in the text format that Prometheus reads (version 0.0.4)."""

import bisect
import collections
from collections.abc import Iterable, Mapping

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_PREFIX = "stair_jax_"
_BUCKETS_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)

Labels = tuple[tuple[str, str], ...]
Values = Mapping[Labels, int | float]

# Of each model's engine: what it is called, of which kind it is, and what it says.
ENGINE = {
    "slots": ("gauge", "Sequences that can be decoded together."),
    "slots_used": ("gauge", "Sequences that are decoded now."),
    "queued": ("gauge", "Sequences that wait for a slot."),
    "pages": ("gauge", "Pages of the key/value pool."),
    "pages_used": ("gauge", "Pages that hold keys now."),
    "decoded": ("counter", "Tokens drawn, those of preempted requests included."),
    "prefilled": ("counter", "Tokens of prompts that were computed."),
    "reused": ("counter", "Tokens of prompts whose keys were there already."),
    "preempted": ("counter", "Requests sent back for want of pages."),
    "busy_slots": ("counter", "Slot-steps that drew a token."),
    "idle_slots": ("counter", "Slot-steps that drew none."),
    "device_s": ("counter", "Seconds in which chunks were computed."),
    "host_s": ("counter", "Seconds between chunks."),
}


class Histogram:
    """How often something took how many seconds."""

    def __init__(self) -> None:
        self.counts = [0] * (len(_BUCKETS_S) + 1)
        self.sum = 0.0

    def add(self, seconds: float) -> None:
        """Counts one."""
        self.counts[bisect.bisect_left(_BUCKETS_S, seconds)] += 1
        self.sum += seconds

    def lines(self, name: str, help_: str) -> Iterable[str]:
        """Yields the histogram as Prometheus reads it; each bucket holds those below it too."""
        yield f"# HELP {name} {help_}"
        yield f"# TYPE {name} histogram"
        total = 0
        for bound, count in zip((*map(str, _BUCKETS_S), "+Inf"), self.counts, strict=True):
            total += count
            yield f'{name}_bucket{{le="{bound}"}} {total}'
        yield f"{name}_sum {self.sum:.6f}"
        yield f"{name}_count {total}"


class ServerMetrics:
    """What the server counts of requests."""

    def __init__(self) -> None:
        self.requests: collections.Counter[tuple[str, int]] = collections.Counter()
        self.tokens: collections.Counter[tuple[str, str]] = collections.Counter()
        self.dropped = 0  # requests whose client went away
        self.first_token, self.whole = Histogram(), Histogram()

    def text(self, inside: int, engines: Mapping[str, Mapping[str, int | float]]) -> str:
        """Returns all figures.

        Args:
          inside: sequences that requests have asked for and not got yet.
          engines: figures of each model's engine, by the model's name.
        """
        requests = {
            (("path", path), ("status", str(status))): count
            for (path, status), count in sorted(self.requests.items())
        }
        tokens = {
            (("model", model), ("kind", kind)): count
            for (model, kind), count in sorted(self.tokens.items())
        }
        help_first = "Seconds from a request to its first token."
        help_whole = "Seconds from a request to the end of its answer."
        lines = [
            *_family(
                "requests_total", "counter", "Requests answered, by path and status.", requests
            ),
            *_family("tokens_total", "counter", "Tokens of prompts and of answers.", tokens),
            *_family(
                "dropped_total", "counter", "Requests whose client went away.", {(): self.dropped}
            ),
            *_family("sequences", "gauge", "Sequences under way or waiting.", {(): inside}),
            *self.first_token.lines(f"{_PREFIX}first_token_seconds", help_first),
            *self.whole.lines(f"{_PREFIX}request_seconds", help_whole),
        ]
        for name, (kind, help_) in ENGINE.items():
            full = f"engine_{name}_total" if kind == "counter" else f"engine_{name}"
            values = {(("model", model),): figures[name] for model, figures in engines.items()}
            lines += _family(full, kind, help_, values)
        return "\n".join(lines) + "\n"


def _family(name: str, kind: str, help_: str, values: Values) -> Iterable[str]:
    yield f"# HELP {_PREFIX}{name} {help_}"
    yield f"# TYPE {_PREFIX}{name} {kind}"
    for labels, value in values.items():
        inner = ",".join(f'{label}="{_escaped(said)}"' for label, said in labels)
        yield f"{_PREFIX}{name}{f'{{{inner}}}' if inner else ''} {value:.10g}"


def _escaped(said: str) -> str:
    return said.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
