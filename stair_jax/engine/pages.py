"""Who owns which page of the KV pool: reference counts and the free list, on the host."""

from collections.abc import Iterable


class OutOfPages(RuntimeError):
    """No free page is left; the engine evicts or preempts and tries again."""


class Pages:
    """Reference counts of `count` pages. Sharing a page adds an owner; the last one frees it."""

    def __init__(self, count: int):
        self.owners = [0] * count
        # Pages are handed out from the end, the lowest number first.
        self.free = list(range(count - 1, -1, -1))
        self.high_water = 0

    def take(self, count: int) -> list[int]:
        """Returns `count` free pages, owned once each.

        Raises:
          OutOfPages: where fewer are free; nothing is taken then.
        """
        if count > len(self.free):
            raise OutOfPages(f"{count} pages wanted, {len(self.free)} free")
        taken = [self.free.pop() for _ in range(count)]
        for page in taken:
            self.owners[page] = 1
        self.high_water = max(self.high_water, len(self.owners) - len(self.free))
        return taken

    def share(self, pages: Iterable[int]) -> None:
        """Adds an owner to each page."""
        for page in pages:
            if self.owners[page] <= 0:
                raise RuntimeError(f"page {page} is free, it cannot be shared")
            self.owners[page] += 1

    def drop(self, pages: Iterable[int]) -> None:
        """Takes an owner from each page; a page without owners is free again."""
        for page in pages:
            if self.owners[page] <= 0:
                raise RuntimeError(f"page {page} is free already")
            self.owners[page] -= 1
            if self.owners[page] == 0:
                self.free.append(page)
