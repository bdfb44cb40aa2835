"""Which rows make up which optimiser step: a function of the rows, the seed and the step alone.

The shuffles are grain's, with random access: any step can be asked for at any time, on any number
of devices, and gives the same rows. One permutation orders the rows of an epoch, another one its
batches.
"""

import abc

import grain
import numpy as np


def shuffled(n: int, seed: int) -> grain.MapDataset:
    """Returns an endless sequence that goes through 0 .. n-1 in a new order every epoch."""
    return grain.MapDataset.range(n).seed(seed % 2**32).shuffle().repeat()


def draw(sequence: grain.MapDataset, at: int) -> int:
    """Returns one number of a shuffled sequence."""
    value = sequence[at]
    assert value is not None
    return value


class Order(abc.ABC):
    """The batches of every epoch, as row numbers.

    Args:
      rows: in the data set that take part in every epoch.
      anchors: further rows, of which an epoch takes some.
      anchors_per_epoch: how many; taken in turn, so that epochs use them evenly.
      batch: rows in a batch.
      seed: of the shuffles.
    """

    def __init__(
        self, rows: int, batch: int, seed: int, *, anchors: int = 0, anchors_per_epoch: int = 0
    ):
        self.rows, self.batch = rows, batch
        self.anchors_per_epoch = anchors_per_epoch if anchors else 0
        self.size = rows + self.anchors_per_epoch  # rows of an epoch
        # Three shuffles that must not move together: apart by more than any seed of a user's.
        self._shuffled = shuffled(max(self.size, 1), seed)
        self._anchors = shuffled(max(anchors, 1), seed + 0x5EED)
        self._epoch: tuple[int, list[np.ndarray]] = (-1, [])
        self._parts = shuffled(max(self.steps_per_epoch, 1), seed + 0xBA7C4)

    @property
    @abc.abstractmethod
    def steps_per_epoch(self) -> int:
        """Batches of an epoch, the same in every one."""

    @abc.abstractmethod
    def _cut(self, order: np.ndarray) -> list[np.ndarray]:
        """Cuts an epoch's rows, in shuffled order, into its batches."""

    def parts(self) -> grain.MapDataset:
        """Returns the endless sequence that says which of its epoch's batches a step takes."""
        return self._parts

    def at(self, step: int) -> np.ndarray:
        """Returns the row numbers of the batch of 0-based `step`."""
        epoch = step // self.steps_per_epoch
        known = self._epoch  # read once: another thread may be at another epoch
        if known[0] != epoch:
            known = self._epoch = (epoch, self._cut(self._rows_of(epoch)))
        return known[1][draw(self._parts, step)]

    def batches_of(self, epoch: int) -> list[np.ndarray]:
        """Returns all batches of an epoch, in no order that matters."""
        return self._cut(self._rows_of(epoch))

    def _rows_of(self, epoch: int) -> np.ndarray:
        turns = range(epoch * self.anchors_per_epoch, (epoch + 1) * self.anchors_per_epoch)
        drawn = self.rows + np.array([draw(self._anchors, i) for i in turns], np.int64)
        present = np.concatenate([np.arange(self.rows), drawn])
        first = epoch * self.size
        return present[[draw(self._shuffled, first + i) for i in range(self.size)]]


class ByBucket(Order):
    """Shuffled rows, sorted by length bucket, cut into batches.

    The rows of a batch share a bucket wherever enough of them do; only one batch is incomplete,
    and rows that do not fill a batch of their bucket join longer ones.
    """

    def __init__(
        self,
        buckets: np.ndarray,
        batch: int,
        seed: int,
        *,
        anchors: int = 0,
        anchors_per_epoch: int = 0,
    ):
        self._buckets = buckets  # [rows + anchors] the number of each row's bucket
        super().__init__(
            len(buckets) - anchors,
            batch,
            seed,
            anchors=anchors,
            anchors_per_epoch=anchors_per_epoch,
        )

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch."""
        return -(-self.size // self.batch)

    def _cut(self, order: np.ndarray) -> list[np.ndarray]:
        order = order[np.argsort(self._buckets[order], kind="stable")]
        return [order[at : at + self.batch] for at in range(0, len(order), self.batch)]


class ByGroup(Order):
    """Shuffled rows, each drawing its whole group along, cut into batches between groups.

    A batch holds `batch` rows, fewer or more by less than a group, as groups are never split. An
    anchor is a group of its own.
    """

    def __init__(
        self,
        groups: np.ndarray,
        batch: int,
        seed: int,
        *,
        anchors: int = 0,
        anchors_per_epoch: int = 0,
    ):
        self._groups = groups  # [rows] the number of each row's group
        super().__init__(
            len(groups), batch, seed, anchors=anchors, anchors_per_epoch=anchors_per_epoch
        )

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch: a group counts as `batch` rows at most, so that none is empty."""
        sizes = np.bincount(self._groups, minlength=1)
        size = int(np.minimum(sizes, self.batch).sum()) + self.anchors_per_epoch
        return -(-size // self.batch)

    def _cut(self, order: np.ndarray) -> list[np.ndarray]:
        units: list[list[int]] = []
        unit_of: dict[int, list[int]] = {}
        for row in order.tolist():
            group = int(self._groups[row]) if row < self.rows else None
            if group is None or group not in unit_of:
                units.append([])
            if group is not None:
                unit_of.setdefault(group, units[-1]).append(row)
            else:
                units[-1].append(row)
        parts: list[list[int]] = [[] for _ in range(self.steps_per_epoch)]
        at = 0
        for unit in units:
            # By where a unit ends: the last batch holds the last unit, so that none is empty.
            at += min(len(unit), self.batch)
            parts[(at - 1) // self.batch] += unit
        return [np.array(part) for part in parts]
