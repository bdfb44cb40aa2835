"""Which slots share a prefix in a chunk: the host's side of `model/groups.py`.

Shape letters: B slots  C groups  I members of a group at most  W pages of a request.
"""

import dataclasses
from collections.abc import Hashable, Sequence

import numpy as np

TOGETHER = 4  # members of a group at most: children of an expansion in the paper


@dataclasses.dataclass(frozen=True)
class Siblings:
    """Numpy arrays for `Groups`, and the tables of the slots' own parts."""

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
            table=np.zeros((groups, width), np.int32), length=np.zeros(groups, np.int32),
            member=np.full((groups, TOGETHER), slots, np.int32), place=np.zeros(slots, np.int32),
            split=np.zeros(slots, np.int32), own=np.zeros((slots, width), np.int32),
        )  # fmt: skip

    @classmethod
    def of(
        cls,
        shared: Sequence[tuple[Hashable, int] | None],
        table: np.ndarray,
        page_size: int,
        counts: Sequence[int],
    ) -> "Siblings":
        """Groups slots.

        Args:
          counts: numbers of groups C that programs are compiled for, rising; the last serves all.
          shared: for each slot the group of its request and how many tokens that group has in
            common; None for an idle slot. Only whole pages of them are shared.
          table: [B, W] int32, the slots' pages; those of a group's shared part are equal.
        """
        slots, width = table.shape
        groups: dict[tuple[Hashable, int], list[list[int]]] = {}
        for slot, common in enumerate(shared):
            if common is None or common[1] < page_size:
                continue
            teams = groups.setdefault(common, [])
            if not teams or len(teams[-1]) == TOGETHER:
                teams.append([])
            teams[-1].append(slot)
        teams = [(common, team) for common, some in groups.items() for team in some]
        count = next(c for c in counts if c >= len(teams))
        found = cls.empty(count, slots, width)
        found.own[:] = table
        for index, ((_, tokens), team) in enumerate(teams):
            whole = tokens // page_size
            found.table[index, :whole] = table[team[0], :whole]
            found.length[index] = whole * page_size
            found.member[index, : len(team)] = team
            for place, slot in enumerate(team):
                found.place[slot] = index * TOGETHER + place
                found.split[slot] = whole * page_size
                found.own[slot] = np.roll(table[slot], -whole)
        return found

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns the fields of `Groups`."""
        names = "table", "length", "member", "place", "split"
        return {name: getattr(self, name) for name in names}
