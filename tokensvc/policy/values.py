"""Values of a policy file, one reader for each kind: nodes in, Python values out, faults collected.

A reader takes the node and the path to it, and returns None where it has added a fault.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias, TypeVar, cast

from tokensvc.policy.document import Entries, Fault, Items, Node, Scalar, kind_of, shown

__all__ = [
    "Faults",
    "Reader",
    "keep",
    "one_of",
    "read_fields",
    "read_list",
    "read_named",
    "read_text",
    "read_texts",
    "read_texts_by_name",
    "read_whole",
    "told",
]

MAX_LIST_ITEMS: Final = 256
_WHOLE: Final = re.compile(r"-?(0|[1-9][0-9]{0,8})", re.ASCII)

T = TypeVar("T")


class Faults:
    """What was found wrong so far. `max_duration` (minutes) is the service's bound."""

    def __init__(self, found: list[Fault], max_duration: int) -> None:
        self._found = found
        self.max_duration = max_duration

    def add(self, line: int, path: str, detail: str) -> None:
        """Add what is wrong with the field at `path`."""
        self._found.append(Fault(line, path, detail))

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._found)


Reader: TypeAlias = Callable[[Faults, Node, str], T | None]


def keep(faults: Faults, node: Node, path: str) -> Node:
    """Return the node itself, to be read later."""
    del faults, path
    return node


def read_text(faults: Faults, node: Node, path: str) -> str | None:
    """Return a string; what YAML takes for something else has to be in quotes."""
    if isinstance(node, Scalar) and node.kind == "str":
        if node.text.isascii() or _is_utf8(node.text):
            return node.text
        faults.add(node.line, path, "holds a lone surrogate, which UTF-8 cannot carry")
        return None
    hint = "; write it in quotes" if isinstance(node, Scalar) and node.text else ""
    faults.add(node.line, path, f"must be a string, not {told(node)}{hint}")
    return None


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def read_whole(faults: Faults, node: Node, path: str) -> int | None:
    """Return a whole number in decimal digits."""
    if isinstance(node, Scalar) and node.kind == "int" and _WHOLE.fullmatch(node.text):
        return int(node.text)
    faults.add(node.line, path, f"must be a whole number, not {told(node)}")
    return None


def one_of(choice: tuple[str, ...]) -> Reader[str]:
    """Return a reader of one of these strings."""

    def read(faults: Faults, node: Node, path: str) -> str | None:
        if isinstance(node, Scalar) and node.text in choice:
            return node.text
        faults.add(node.line, path, f"must be one of {', '.join(choice)}, not {told(node)}")
        return None

    return read


def read_texts(faults: Faults, node: Node, path: str) -> tuple[str, ...]:
    """Return a list of strings."""
    return read_list(faults, node, path, read_text)


def read_list(faults: Faults, node: Node, path: str, read: Reader[T]) -> tuple[T, ...]:
    """Return what `read` makes of each item of a list, leaving out those with a fault."""
    if not isinstance(node, Items):
        faults.add(node.line, path, f"must be a list, not {told(node)}")
        return ()
    if len(node.items) > MAX_LIST_ITEMS:
        faults.add(node.line, path, f"has {len(node.items)} items; {MAX_LIST_ITEMS} are allowed")
        return ()
    values = (read(faults, item, f"{path}[{index}]") for index, item in enumerate(node.items))
    return tuple(value for value in values if value is not None)


def read_texts_by_name(faults: Faults, node: Node, path: str) -> Mapping[str, str] | None:
    """Return a mapping of strings to strings; None where any is at fault."""
    found = len(faults)
    texts = {
        name: read_text(faults, value, f"{path}.{shown(name)}")
        for name, (_, value) in read_named(faults, node, path).items()
    }
    return cast("Mapping[str, str]", texts) if len(faults) == found else None


def read_named(faults: Faults, node: Node, path: str) -> dict[str, tuple[int, Node]]:
    """Return the nodes of a mapping, each with its line; empty for what is none."""
    if not isinstance(node, Entries):
        faults.add(node.line, path, f"must be a mapping, not {told(node)}")
        return {}
    return {name: (entry.line, entry.value) for name, entry in node.entries.items()}


def read_fields(
    faults: Faults,
    node: Node,
    path: str,
    readers: Mapping[str, Reader[Any]],
    required: tuple[str, ...],
    line: int | None = None,
) -> dict[str, Any]:
    """Read a mapping with a reader for each field that it may have."""
    if not isinstance(node, Entries):
        faults.add(line or node.line, path, f"must be a mapping, not {told(node)}")
        return {}
    dotted = f"{path}." if path else ""
    values = {}
    for name, entry in node.entries.items():
        reader = readers.get(name)
        if reader is None:
            known = ", ".join(readers)
            faults.add(
                entry.line, f"{dotted}{shown(name)}", f"is not a field here; there are {known}"
            )
            continue
        value = reader(faults, entry.value, f"{dotted}{name}")
        if value is not None:
            values[name] = value
    for name in required:
        if name not in node.entries:
            faults.add(line or node.line, f"{dotted}{name}", "is required")
    return values


def told(node: Node) -> str:
    """Return in words what stands there."""
    if isinstance(node, Scalar) and node.kind not in ("null", "str"):
        return f"{kind_of(node)} ({shown(node.text)})"
    if isinstance(node, Scalar) and node.kind == "str":
        return f'"{shown(node.text)}"'
    return kind_of(node)
