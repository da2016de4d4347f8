"""What fuzzing feeds parsers with: JSON close to what is right, and JSON and text that are not."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from tests.http.support import stage_arn

# Lone surrogates come out of JSON's \ud800, and control characters out of anybody.
TEXT = st.text(st.characters(), max_size=140)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(10**30), 10**30)
    | st.floats()
    | TEXT
    | st.sampled_from(["", stage_arn(), "PUBLISH", "local", "a" * 129, "2026-09-01T12:00:00Z"])
)
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4)
)


def near(right: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Objects that have fields of `right`, some with other values, and some more fields."""
    fields = {name: st.just(value) | JSON for name, value in right.items()}
    objects = st.fixed_dictionaries({}, optional=fields)
    more = st.dictionaries(TEXT, JSON, max_size=2)
    return st.builds(lambda some, others: {**others, **some}, objects, more) | JSON


def cut_and_joined(right: bytes) -> st.SearchStrategy[bytes]:
    """Bytes that begin or end as `right` does, with others in between, and any bytes."""

    def cut(start: int, end: int, between: bytes) -> bytes:
        return right[:start] + between + right[end:]

    place = st.integers(0, len(right))
    return st.builds(cut, place, place, st.binary(max_size=8)) | st.binary(max_size=200)
