"""A mapping of the keys that were used lately, of bounded size, at the cost of a plain dict.

What was used goes into the younger of two generations. When that one is full it becomes the older one,
and what was the older one is forgotten: nothing that is among the last half of `at_most` keys to be used,
and no more than `at_most` keys are held. A list in the order of use would cost each look-up more than
the look-up.
"""

from __future__ import annotations

from typing import Generic, TypeVar

__all__ = ["Recent"]

K = TypeVar("K")
V = TypeVar("V")


class Recent(Generic[K, V]):
    """Values by key, of which those that were not used for longest may be gone."""

    __slots__ = ("_half", "_older", "_younger")

    def __init__(self, at_most: int) -> None:
        """`at_most` keys are held, 2 or more."""
        self._half = max(1, at_most // 2)
        self._younger: dict[K, V] = {}
        self._older: dict[K, V] = {}

    def __len__(self) -> int:
        """Return how many keys are held, those that are in both generations twice."""
        return len(self._younger) + len(self._older)

    def get(self, key: K) -> V | None:
        """Return the value under `key`, which is used now; None where there is none."""
        value = self._younger.get(key)
        if value is None:
            value = self._older.get(key)
            if value is not None:
                self.put(key, value)
        return value

    def put(self, key: K, value: V) -> None:
        """Hold `value`, which is not None, under `key`, which is used now."""
        younger = self._younger
        younger[key] = value
        if len(younger) >= self._half:
            self._older = younger
            self._younger = {}
