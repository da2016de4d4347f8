"""What IVS lists, sorted by whose it is and what it is to the ring.

Pure. What is listed must have been listed before the ring was loaded: a key of ours is stored before
it is imported, so then a key that the ring does not know is not one that another process is just
importing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from tokensvc.ivs.gateway import PublicKeySummary
from tokensvc.keyring.policy import SLOTS
from tokensvc.keyring.record import KeyPhase, RingState, tagged_key_id

__all__ = ["Holdings", "Orphan"]


@dataclass(frozen=True, slots=True)
class Orphan:
    """A key that carries this ring's tags and that its store does not know."""

    key_id: str
    arn: str
    name: str


@dataclass(frozen=True, slots=True)
class Holdings:
    """The public keys of one Region at IVS, as one ring sees them.

    - `arns`: all of them; each takes a slot.
    - `imported`: ids of GENERATED keys that IVS has already.
    - `strays`: ours to delete at once, since nothing was ever signed, or shall live on, under them:
      second imports of one key, and keys that are DELETED here.
    - `orphans`: ours by their tags, and unknown here.
    - `foreign`: somebody else's, never touched.
    """

    arns: frozenset[str]
    imported: frozenset[str]
    strays: tuple[str, ...]
    orphans: tuple[Orphan, ...]
    foreign: tuple[str, ...]

    @property
    def free_slots(self) -> int:
        """How many more keys IVS takes."""
        return max(0, SLOTS - len(self.arns))

    @classmethod
    def sort(cls, ring: RingState, ring_id: str, listed: Iterable[PublicKeySummary]) -> Self:
        """Sort what was listed before `ring` was loaded."""
        phase_by_arn = {key.arn: key.phase for key in ring.keys if key.arn is not None}
        summaries = sorted(listed, key=lambda summary: summary.arn)
        imported: set[str] = set()
        strays: list[str] = []
        orphans: list[Orphan] = []
        foreign: list[str] = []
        for summary in summaries:
            phase = phase_by_arn.get(summary.arn)
            if phase is not None:
                if phase is KeyPhase.DELETED:
                    strays.append(summary.arn)
                continue
            key_id = tagged_key_id(ring_id, ring.owner, summary.tags)
            if key_id is None:
                foreign.append(summary.arn)
                continue
            key = ring.key(key_id)
            if key is None:
                orphans.append(Orphan(key_id, summary.arn, summary.name))
            elif key.phase is KeyPhase.GENERATED:
                # The first becomes the key's own with the next import step, others strays by that.
                imported.add(key_id)
            else:
                strays.append(summary.arn)
        return cls(
            arns=frozenset(summary.arn for summary in summaries),
            imported=frozenset(imported),
            strays=tuple(strays),
            orphans=tuple(orphans),
            foreign=tuple(foreign),
        )
