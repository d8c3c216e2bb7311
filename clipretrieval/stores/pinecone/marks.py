"""What was written to a namespace and is not seen yet, or is not known to be written."""

from __future__ import annotations

from dataclasses import dataclass

from clipretrieval._util.forks import ForkLock

__all__ = ["Marks", "Unseen"]


@dataclass(frozen=True)
class Unseen:
    """What has to be looked for.

    Attributes
    ----------
    committed : int or None
        The number of the last upsert in the namespace's log.
    added : dict of str to int
        Keys that have to be there, each with the mark of its write.
    gone : dict of str to (str, int)
        Keys that must not be there, each with the true id and the mark.
    """

    committed: int | None
    added: dict[str, int]
    gone: dict[str, tuple[str, int]]


class Marks:
    """Keeps account of the writes to one namespace; threads may share it."""

    def __init__(self) -> None:
        self._lock = ForkLock()
        self._committed: int | None = None
        self._added: dict[str, int] = {}
        self._gone: dict[str, tuple[str, int]] = {}
        self._doubted: set[str] = set()
        self._last = 0

    @property
    def doubtful(self) -> bool:
        """Whether there are records of which it is not known whether they are, or will be, stored."""
        with self._lock.current:
            return bool(self._doubted)

    def written(self, keys: list[str], number: int | None) -> None:
        """Note an upsert that the service accepted, with its number in the log if it gave one."""
        with self._lock.current:
            self._forget(keys)
            self._doubted.difference_update(keys)
            if number is None:
                self._last += 1
                self._added.update(dict.fromkeys(keys, self._last))
            else:
                self._committed = max(number, self._committed or 0)

    def removed(self, names: dict[str, str]) -> None:
        """Note a delete that the service accepted, of keys with their true ids."""
        with self._lock.current:
            self._forget(names)
            self._doubted.difference_update(names)
            self._last += 1
            self._gone.update({key: (name, self._last) for key, name in names.items()})

    def doubted(self, keys: list[str], upsert: bool) -> None:
        """Note a write that may have been done or not, or may be done yet: nothing of it is looked for."""
        with self._lock.current:
            self._forget(keys)
            if upsert:
                self._doubted.update(keys)

    def unseen(self) -> Unseen:
        """Return what has to be looked for now."""
        with self._lock.current:
            return Unseen(self._committed, dict(self._added), dict(self._gone))

    def seen(
        self,
        committed: int | None = None,
        added: dict[str, int] | None = None,
        gone: dict[str, tuple[str, int]] | None = None,
    ) -> None:
        """Drop what was seen, unless it was written again meanwhile."""
        with self._lock.current:
            if committed is not None and self._committed == committed:
                self._committed = None
            for key, mark in (added or {}).items():
                if self._added.get(key) == mark:
                    del self._added[key]
            for key, state in (gone or {}).items():
                if self._gone.get(key) == state:
                    del self._gone[key]

    def _forget(self, keys: list[str] | dict[str, str]) -> None:
        for key in keys:
            self._added.pop(key, None)
            self._gone.pop(key, None)
