"""Pages of a list: `maxResults` and `nextToken`.

A `nextToken` names the last item of its page by its place in the order, not by its index, so that
deletions between two pages neither skip nor repeat an item.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, TypeVar

import msgspec

from tokensvc.emulator.errors import ValidationError

__all__ = ["DEFAULT_PAGE_SIZE", "Place", "page"]

DEFAULT_PAGE_SIZE: Final = 50

Place = tuple[float, str]
"""Where an item stands in its list's order: a time or an index, then what tells equal ones apart."""

_Item = TypeVar("_Item")


def page(
    items: Iterable[_Item], request: Mapping[str, Any], place: Callable[[_Item], Place]
) -> tuple[list[_Item], dict[str, str]]:
    """Return one page, and `nextToken` as a member of the answer where there is more.

    Raises ValidationError for a `nextToken` that is not one of ours.
    """
    ordered = sorted(items, key=place)
    if token := request.get("nextToken"):
        after = _read(token)
        ordered = [item for item in ordered if place(item) > after]
    size = request.get("maxResults", DEFAULT_PAGE_SIZE)
    shown = ordered[:size]
    if len(ordered) <= size:
        return shown, {}
    return shown, {"nextToken": _write(place(shown[-1]))}


def _write(place: Place) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(place)).decode("ascii")


def _read(token: str) -> Place:
    try:
        place: Place = msgspec.json.decode(base64.urlsafe_b64decode(token), type=Place)
    except ValueError as error:
        raise ValidationError("Value at 'nextToken' failed to satisfy constraint") from error
    return place
