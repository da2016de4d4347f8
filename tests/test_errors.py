"""Every error code is documented, is of one class alone, and keeps its private half to itself."""

import re
from pathlib import Path

import pytest

from tokensvc import errors
from tokensvc.errors import FieldError, TokenServiceError

DOCUMENT = Path(__file__).parent.parent / "docs" / "errors.md"
ROW = re.compile(r"^\| (\d{3}) \| `([a-z_]+)` \| ([^|]+) \|", re.MULTILINE)


def classes(root=TokenServiceError):
    yield root
    for child in root.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from classes(child)


def test_the_document_lists_every_code_and_no_other():
    documented = {
        (int(status), code, title.strip())
        for status, code, title in ROW.findall(DOCUMENT.read_text())
    }
    assert documented == {(error.status, error.code, error.title) for error in classes()}


def test_a_code_belongs_to_one_class():
    codes = [error.code for error in classes()]
    assert len(codes) == len(set(codes))


def test_every_class_is_exported():
    assert {error.__name__ for error in classes()} | {"FieldError"} == set(errors.__all__)


@pytest.mark.parametrize("error", list(classes()), ids=lambda error: error.code)
def test_the_private_half_stays_out_of_the_text(error):
    raised = error(
        "what happened", errors=(FieldError("a", "b", "c"),), retry_after=1.5, key_id="k9"
    )
    assert str(raised) == raised.detail == "what happened"
    assert "k9" not in repr(raised)
    assert raised.context == {"key_id": "k9"}
    assert raised.retry_after == 1.5
