"""What is used is kept, and nothing grows without bound."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tokensvc.policy.recent import Recent

uses = st.lists(st.tuples(st.booleans(), st.integers(0, 30)), max_size=200)


@given(st.integers(2, 20), uses)
def test_the_last_used_are_held_and_no_more_than_the_bound(
    at_most: int, uses: list[tuple[bool, int]]
) -> None:
    sut: Recent[int, str] = Recent(at_most)
    held: dict[int, str] = {}
    order: list[int] = []
    for number, (puts, key) in enumerate(uses):
        if puts:
            sut.put(key, f"v{number}")
            held[key] = f"v{number}"
        else:
            found = sut.get(key)
            assert found is None or found == held[key]
            if found is None:
                continue
        order = [other for other in order if other != key] + [key]
        assert len(sut) <= at_most
        for recent in order[-(at_most // 2) :][::-1]:
            assert (recent in sut._younger) or (recent in sut._older)
