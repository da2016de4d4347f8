"""Pages neither skip nor repeat an item, whatever is deleted between two of them."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokensvc.emulator.errors import ValidationError
from tokensvc.emulator.pages import page

ITEMS = st.lists(
    st.tuples(st.floats(0, 2e9, allow_nan=False), st.text("abc", max_size=3)),
    unique=True,
    max_size=12,
)


@settings(max_examples=100, deadline=None)
@given(items=ITEMS, size=st.integers(1, 5), data=st.data())
def test_pages_hold_everything_that_stays_once(
    items: list[tuple[float, str]], size: int, data: st.DataObject
) -> None:
    left, found = list(items), []
    deleted: set[tuple[float, str]] = set()
    request: dict[str, Any] = {"maxResults": size}
    while True:
        shown, more = page(left, request, lambda item: item)
        assert len(shown) <= size
        found += shown
        if not more:
            break
        request |= more
        for item in data.draw(st.lists(st.sampled_from(left), max_size=2)):
            if item in left:
                left.remove(item)
                deleted.add(item)
    assert found == sorted(set(found))
    assert set(items) - deleted <= set(found)


def test_a_page_has_fifty_items_where_none_asks() -> None:
    shown, more = page(range(51), {}, lambda number: (number, ""))
    assert len(shown) == 50
    assert page(range(51), more, lambda number: (number, "")) == ([50], {})


@pytest.mark.parametrize(
    "token", ["a", "abcd", base64.urlsafe_b64encode(b'["x", 5]').decode(), "=", "////"]
)
def test_foreign_token_is_refused(token: str) -> None:
    with pytest.raises(ValidationError, match="nextToken"):
        page([], {"nextToken": token}, lambda item: item)
