"""Searches in a namespace: ties where a row ends, and answers that would be too large."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from clipretrieval.stores.pinecone.answers import Match
from clipretrieval.stores.pinecone.namespace import Space
from clipretrieval.stores.pinecone.records import in_json
from clipretrieval.stores.pinecone.requests import Failure
from clipretrieval.types import FloatArray

__all__ = ["Distance", "nearest"]

Distance = Callable[[Match, Sequence[float]], float]
Ranked = list[tuple[float, Match]]


def nearest(space: Space, queries: FloatArray, k: int, widest: int, distance: Distance) -> list[Ranked]:
    """Find the `k` nearest of each query, and all that are as far as the last of them.

    Parameters
    ----------
    space : Space
    queries : ndarray of float32, shape (n_queries, dim)
    k : int
    widest : int
        At least `k`: how many may be looked at to tell where equal distances end.
    distance : callable
        Maps a match and its query to a distance.

    Returns
    -------
    list of list of (float, Match), length n_queries
        Ascending by distance.
    """
    search = _Search(space, queries, k, distance)
    waiting = [(place, min(k + 1, widest)) for place in range(len(queries))]
    while waiting:
        waiting = [
            (place, reach if near is None else min(2 * reach + 14, widest))
            for place, reach, near in search.round(waiting)
            if near is None or (len(near) == reach < widest and near[k - 1][0] == near[-1][0])
        ]
    search.complete()
    return search.found


class _Search:
    """What is found so far, and from how many matches on their metadata make an answer too large."""

    def __init__(self, space: Space, queries: FloatArray, k: int, distance: Distance) -> None:
        self.found: list[Ranked] = [[] for _ in queries]
        self._space, self._queries, self._k, self._distance = space, queries, k, distance
        self._bare_from = math.inf
        self._bare: set[int] = set()

    def round(self, asked: list[tuple[int, int]]) -> Iterator[tuple[int, int, Ranked | None]]:
        """Ask for so many matches of the queries at these places; None: an answer too large."""
        outcomes = self._space.searched(self._calls(asked))
        for (place, reach), outcome in zip(asked, outcomes, strict=True):
            if not isinstance(outcome, Failure):
                self.found[place] = self._ranked(place, map(Match.of, outcome.matches))
                yield place, reach, self.found[place]
            elif outcome.refused and place not in self._bare:
                # How the service words it is not documented: any refusal is tried without metadata.
                self._bare_from = min(self._bare_from, reach)
                yield place, reach, None
            else:
                raise outcome.error

    def complete(self) -> None:
        """Read the metadata of matches that came without, as far as they may be among the nearest."""
        kept: dict[int, list[Match]] = {}
        for place in self._bare:
            near = self.found[place]
            kept[place] = [match for far, match in near if far <= near[min(self._k, len(near)) - 1][0]]
        keys = {match.id: None for matches in kept.values() for match in matches}
        fields = self._space.metadata(list(keys)) if keys else {}
        for place, matches in kept.items():
            # A record that was deleted meanwhile is left out.
            whole = (Match(each.id, each.score, fields[each.id]) for each in matches if each.id in fields)
            self.found[place] = self._ranked(place, whole)

    def _calls(self, asked: list[tuple[int, int]]) -> Iterator[Callable[[], Any]]:
        for place, reach in asked:
            bare = reach >= self._bare_from
            if bare:
                self._bare.add(place)
            yield partial(self._space.query, in_json(self._queries[place]), reach, not bare)

    def _ranked(self, place: int, matches: Iterable[Match]) -> Ranked:
        query = in_json(self._queries[place])
        return sorted(((self._distance(each, query), each) for each in matches), key=lambda pair: pair[0])
