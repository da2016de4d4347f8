"""A YAML text as a tree that knows its lines, within bounds.

Read from the parser's events, without recursion, so that neither depth nor aliases can blow it up:
anchors and aliases are refused, since a policy must say what it means where it says it. Nothing is
ever constructed from a tag; a scalar is its text and the kind that YAML 1.1 sees in it, so that an
unquoted `no` or `012` is told as a mistake instead of being read as something else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import yaml

__all__ = [
    "MAX_BYTES",
    "Entries",
    "Entry",
    "Fault",
    "Items",
    "Node",
    "Scalar",
    "kind_of",
    "read_document",
    "shown",
]

MAX_BYTES: Final = 1_048_576
MAX_DEPTH: Final = 16
"""A policy is five levels deep."""

_LOADER: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_RESOLVER: Final = yaml.resolver.Resolver()
_TAG: Final = "tag:yaml.org,2002:"


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong in a line of the file; `field` is the path from its root."""

    line: int
    field: str
    detail: str

    def __str__(self) -> str:
        """Return it as one line of text."""
        where = f"{self.field}: " if self.field else ""
        return f"line {self.line}: {where}{self.detail}"


@dataclass(frozen=True, slots=True)
class Scalar:
    """A single value; `kind` is what YAML takes it for: str, int, float, bool, null, timestamp..."""

    line: int
    text: str
    kind: str


@dataclass(frozen=True, slots=True)
class Items:
    """A sequence."""

    line: int
    items: list[Node]


@dataclass(frozen=True, slots=True)
class Entry:
    """One key of a mapping, and its value."""

    line: int
    value: Node


@dataclass(frozen=True, slots=True)
class Entries:
    """A mapping; its keys are strings."""

    line: int
    entries: dict[str, Entry]


Node: TypeAlias = Scalar | Items | Entries


def read_document(text: bytes, faults: list[Fault]) -> Node | None:
    """Return the one document in `text`, at most 1 MB of UTF-8; None where there is none.

    What is wrong is added to `faults`. A text that is not YAML ends at its first fault.
    """
    if len(text) > MAX_BYTES:
        faults.append(Fault(1, "", f"has {len(text)} bytes; a policy has at most {MAX_BYTES}"))
        return None
    try:
        decoded = text.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        faults.append(Fault(text.count(b"\n", 0, error.start) + 1, "", "is not UTF-8"))
        return None
    builder = _Builder(faults)
    try:
        for event in yaml.parse(decoded, Loader=_LOADER):
            if not builder.take(event):
                break
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        faults.append(Fault(mark.line + 1 if mark else 1, "", f"is not YAML: {error.problem}"))
        return None
    except yaml.YAMLError as error:
        # Of characters that no YAML file may hold; the parser gives a position, not a line.
        reason = " ".join(str(error).split())[:200]
        faults.append(Fault(1, "", f"is not YAML: {reason}"))
        return None
    return builder.root


@dataclass(slots=True)
class _Open:
    """A mapping or sequence whose end has not come yet."""

    node: Items | Entries
    key: Scalar | None = None


class _Builder:
    def __init__(self, faults: list[Fault]) -> None:
        self.root: Node | None = None
        self._faults = faults
        self._open: list[_Open] = []
        self._documents = 0

    def take(self, event: Any) -> bool:
        """Take the next event; False ends the reading, a fault says why."""
        line = event.start_mark.line + 1
        if isinstance(event, yaml.DocumentStartEvent):
            self._documents += 1
            if self._documents > 1:
                return self._refuse(line, "a second document begins; a policy is one")
        elif isinstance(event, yaml.AliasEvent):
            self._fault(line, f"aliases are not read: write out what *{event.anchor} means")
            return self._skip(line)
        elif isinstance(event, yaml.NodeEvent):
            return self._take_node(event, line)
        elif isinstance(event, yaml.CollectionEndEvent):
            self._open.pop()
        return True

    def _take_node(self, event: Any, line: int) -> bool:
        if event.anchor is not None:
            self._fault(line, f"anchors are not read: leave out &{event.anchor}")
        if event.tag is not None and event.tag != "!":
            self._fault(line, f"tags are not read: leave out {shown(event.tag)}")
        if isinstance(event, yaml.ScalarEvent):
            self._place(Scalar(line, event.value, _kind(event)), line)
            return True
        if len(self._open) >= MAX_DEPTH:
            return self._refuse(line, f"is nested more than {MAX_DEPTH} levels deep")
        mapping = isinstance(event, yaml.MappingStartEvent)
        node: Items | Entries = Entries(line, {}) if mapping else Items(line, [])
        if not self._place(node, line):
            return self._refuse(line, "a key must be a single value")
        self._open.append(_Open(node))
        return True

    def _place(self, node: Node, line: int) -> bool:
        if not self._open:
            self.root = node
            return True
        parent = self._open[-1]
        if isinstance(parent.node, Items):
            parent.node.items.append(node)
        elif parent.key is None:
            if not isinstance(node, Scalar):
                return False
            parent.key = node
        else:
            key, parent.key = parent.key, None
            known = parent.node.entries.get(key.text)
            if known is not None:
                self._faults.append(
                    Fault(key.line, shown(key.text), f"is given before, in line {known.line}")
                )
            elif key.kind not in ("str", "int"):
                detail = f"YAML takes this key for {_article(key.kind)}: write it in quotes"
                self._faults.append(Fault(line, shown(key.text), detail))
            else:
                parent.node.entries[key.text] = Entry(key.line, node)
        return True

    def _skip(self, line: int) -> bool:
        # The rest is still read, so that its faults are told as well.
        if self._open and isinstance(self._open[-1].node, Entries):
            if self._open[-1].key is None:
                return self._refuse(line, "a key must be a single value")
            self._open[-1].key = None
        return True

    def _fault(self, line: int, detail: str) -> None:
        self._faults.append(Fault(line, "", detail))

    def _refuse(self, line: int, detail: str) -> bool:
        self._fault(line, detail)
        self.root = None
        return False


def _kind(event: Any) -> str:
    # Only what is written without quotes can be anything but a string.
    plain, _ = event.implicit
    tag: str = _RESOLVER.resolve(yaml.ScalarNode, event.value, (plain, not plain))
    return tag.removeprefix(_TAG)


def _article(kind: str) -> str:
    return {"null": "nothing", "int": "a number", "float": "a number"}.get(kind, f"a {kind}")


def kind_of(node: Node) -> str:
    """Return in words what `node` is."""
    if isinstance(node, Items):
        return "a list"
    if isinstance(node, Entries):
        return "a mapping"
    return "a string" if node.kind == "str" else _article(node.kind)


def shown(text: str) -> str:
    """Return a text of the file as it may be printed: short, and fit for a terminal."""
    return ascii(text[:64])[1:-1]
