"""Promise: replicas die, the database dies, the network is cut, keys change, and nothing is lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.e2e.chaos import SETTINGS, Chaos
from tests.e2e.cluster import Cluster

SEED = 6
"""Of the schedule; `make chaos SEED=n` repeats another one."""


async def test_a_cluster_keeps_its_promises_through_everything(
    tmp_path: Path, tell: Callable[[str], None]
) -> None:
    async with Cluster(tmp_path / "cluster", **SETTINGS) as cluster:
        chaos = Chaos(cluster, SEED)
        await chaos.run()
    tell("\n".join(chaos.figures()))
    assert chaos.faults == []
    # What is checked above was there to be checked.
    done = {name for name in chaos.counts if name.startswith("did ")}
    assert len(done) == 5
    assert chaos.counts["tokens that joined"] > 100
    assert chaos.counts["tokens refused, as they must be"] > 0
    assert chaos.counts["mints refused as banned"] > 0
    assert chaos.counts["of them by CreateParticipantToken"] >= 100
    assert chaos.counts["keys invalidated"] == 1
    assert chaos.counts["kicks done"] == 3
