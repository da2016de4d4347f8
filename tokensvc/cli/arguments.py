"""What is given on the command line, beyond what click knows: paths, and `NAME=VALUE`."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import click

__all__ = ["PathOption", "pairs_of"]


class PathOption(click.Path):
    """A path as an option or argument; an empty one, as an unset variable gives, is no folder's name."""

    def __init__(
        self, *, exists: bool = False, file_okay: bool = True, dir_okay: bool = True
    ) -> None:
        super().__init__(exists=exists, file_okay=file_okay, dir_okay=dir_okay, path_type=Path)

    def convert(
        self,
        value: object,
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> str | bytes | os.PathLike[str]:
        """Return the path; click.BadParameter for what may not be one."""
        if value == "":
            self.fail("the path is empty.", param, ctx)
        return super().convert(value, param, ctx)  # type: ignore[arg-type]


def pairs_of(texts: Iterable[str], option: str) -> dict[str, str]:
    """Return what an option that is repeated gave as `NAME=VALUE`; click.BadParameter for anything else.

    No name is given twice, since one of its values would be lost.
    """
    pairs: dict[str, str] = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not separator:
            raise click.BadParameter(f"{text!r} is not NAME=VALUE", param_hint=option)
        if name in pairs:
            raise click.BadParameter(f"{name!r} is given twice", param_hint=option)
        pairs[name] = value
    return pairs
