"""Promise: `tokensvc bench` measures what it says, on one core, without an installation."""

from __future__ import annotations

import json
import os
import sys

import pytest

from tokensvc.cli.measuring import (
    AWS_LC,
    MINT,
    OPENSSL,
    Rate,
    measure,
    median_rate,
    ratio,
    subjects,
)
from tokensvc.cli.root import run
from tokensvc.issuing.issued import Draft

QUICK = ["bench", "--rounds", "2", "--seconds", "0.001"]


@pytest.fixture
def affinity():
    cores = os.sched_getaffinity(0)
    yield cores
    os.sched_setaffinity(0, cores)


def test_json_has_every_round(capsys: pytest.CaptureFixture[str]):
    assert run([*QUICK, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert list(report["figures"]) == [AWS_LC, OPENSSL, MINT]
    for figure in report["figures"].values():
        assert len(figure["perSecondOfEachRound"]) == 2
        low, high = sorted(figure["perSecondOfEachRound"])
        assert 0 < low <= figure["perSecond"] <= high
    assert report["figures"][AWS_LC]["ratio"] == 1.0


def test_table_and_summary(capsys: pytest.CaptureFixture[str]):
    assert run(QUICK) == 0
    header, *rows, summary = capsys.readouterr().out.splitlines()
    assert header.split() == ["a", "second", "ratio"]
    assert [row.split("  ")[0] for row in rows] == [AWS_LC, OPENSSL, MINT]
    assert summary.startswith("One core mints ")


def test_without_aws_lc_openssl_is_the_base(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "awscrt.crypto", None)
    monkeypatch.delitem(sys.modules, "tokensvc.signing.awslc", raising=False)
    assert run([*QUICK, "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)["figures"]
    assert list(figures) == [OPENSSL, MINT]
    assert figures[OPENSSL]["ratio"] == 1.0


def test_it_stays_on_the_core_that_is_asked_for(affinity: set[int]):
    core = max(affinity)
    assert run([*QUICK, "--core", str(core)]) == 0
    assert os.sched_getaffinity(0) == {core}


def test_a_core_that_is_not_there(affinity: set[int], capsys: pytest.CaptureFixture[str]):
    assert run([*QUICK, "--core", "100000"]) == 2
    assert "100000 is no core of this process" in capsys.readouterr().err


def test_the_mint_that_is_measured_makes_a_token():
    draft = subjects()[MINT]()
    assert isinstance(draft, Draft)
    assert draft.token.token.count(".") == 2
    assert draft.row.token_id == draft.token.participant_id


def test_rounds_are_interleaved_and_whole():
    called: list[str] = []
    figures = measure(
        {"a": lambda: called.append("a"), "b": lambda: called.append("b")}, rounds=2, seconds=1e-9
    )
    changes = [
        name for name, before in zip(called, [None, *called], strict=False) if name != before
    ]
    assert changes == ["a", "b", "a", "b"]
    assert {name: len(rates) for name, rates in figures.items()} == {"a": 2, "b": 2}


def test_medians():
    rates = [Rate(100.0, 0.0), Rate(80.0, 0.0), Rate(10.0, 0.0)]
    base = [Rate(100.0, 0.0), Rate(100.0, 0.0), Rate(10.0, 0.0)]
    assert median_rate(rates) == 80.0
    assert ratio(rates, base) == 1.0
