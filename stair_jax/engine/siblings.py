"""Which slots share a prefix in a chunk: the host's side of `model/groups.py`.

Shape letters: B slots  C groups  I members of a group at most  W pages of a request.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

TOGETHER = 4  # members of a group at most: children of an expansion in the paper


@dataclasses.dataclass(frozen=True)
class Siblings:
    """Numpy arrays for `SharedPrefixCache`, and the tables of the slots' own parts."""

    table: np.ndarray  # [C, W] int32
    length: np.ndarray  # [C] int32, tokens
    member: np.ndarray  # [C, I] int32; B where nobody is
    place: np.ndarray  # [B] int32
    split: np.ndarray  # [B] int32, tokens
    own: np.ndarray  # [B, W] int32

    @classmethod
    def empty(cls, groups: int, slots: int, width: int) -> "Siblings":
        """Returns groups without members."""
        return cls(
            table=np.zeros((groups, width), np.int32),
            length=np.zeros(groups, np.int32),
            member=np.full((groups, TOGETHER), slots, np.int32),
            place=np.zeros(slots, np.int32),
            split=np.zeros(slots, np.int32),
            own=np.zeros((slots, width), np.int32),
        )

    @classmethod
    def of(
        cls,
        team: np.ndarray,
        shared: np.ndarray,
        table: np.ndarray,
        page_size: int,
        counts: Sequence[int],
    ) -> "Siblings":
        """Groups slots.

        Args:
          counts: numbers of groups C that programs are compiled for, rising; the last serves all.
          shared: [B] int32, how many tokens a slot's request has in common with all of its team.
            Only whole pages of them are shared.
          table: [B, W] int32, the slots' pages; those of a team's shared part are equal.
          team: [B] int, a number for each set of slots that share; below 0 for a slot alone.
        """
        slots, width = table.shape
        whole_B = np.where(team < 0, 0, shared // page_size)
        slot = np.flatnonzero(whole_B)
        # Teams by their first slot, then the slots of each, cut into groups of TOGETHER.
        _, first, number = np.unique(team[slot], return_index=True, return_inverse=True)
        rank = np.argsort(np.argsort(first))[number]
        order = np.argsort(rank, kind="stable")
        slot, rank = slot[order], rank[order]
        sizes = np.bincount(rank, minlength=len(first))
        seat = np.arange(len(slot)) - (np.cumsum(sizes) - sizes)[rank]
        groups = -(-sizes // TOGETHER)
        group = (np.cumsum(groups) - groups)[rank] + seat // TOGETHER
        seat = seat % TOGETHER
        count = int(groups.sum())
        found = cls.empty(next(c for c in counts if c >= count), slots, width)
        found.member[group, seat] = slot
        found.place[slot] = group * TOGETHER + seat
        found.split[:] = whole_B * page_size
        leader = found.member[:count, 0]
        found.length[:count] = found.split[leader]
        page_W = np.arange(width)
        found.table[:count] = np.where(page_W < whole_B[leader, None], table[leader], 0)
        found.own[:] = np.take_along_axis(table, (page_W + whole_B[:, None]) % width, axis=1)
        return found

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns the fields of `SharedPrefixCache`."""
        names = "table", "length", "member", "place", "split"
        return {name: getattr(self, name) for name in names}
