"""Many rows in few statements, whatever their number."""

from __future__ import annotations

from math import ceil

import pytest
from sqlalchemy import Column, Integer, MetaData, Table, Text, create_engine, event, select
from sqlalchemy.exc import IntegrityError

from tokensvc.store.inserts import insert_absent, insert_rows

NUMBERS = Table("numbers", MetaData(), Column("number", Integer), Column("name", Text))


def inserted(counts: range | tuple[int, ...]) -> list[str]:
    """Insert so many rows, one transaction each; return the statements that it took."""
    engine = create_engine("sqlite://")
    statements: list[str] = []
    event.listen(
        engine,
        "before_cursor_execute",
        lambda *arguments: statements.append(arguments[2]),
    )
    with engine.begin() as connection:
        NUMBERS.create(connection)
        statements.clear()
        total = 0
        for count in counts:
            rows = [(total + number, f"n{total + number}") for number in range(count)]
            insert_rows(connection, NUMBERS, ("number", "name"), rows)
            total += count
        made = list(statements)
        stored = connection.execute(select(NUMBERS).order_by(NUMBERS.c.number)).all()
    assert [tuple(row) for row in stored] == [(n, f"n{n}") for n in range(total)]
    return made


@pytest.mark.parametrize("count", [0, 1, 5, 63, 64, 65, 100, 255, 256, 257, 1000, 2000])
def test_every_row_is_there_once_and_in_few_statements(count: int):
    assert len(inserted((count,))) == ceil(count / 256)


def test_numbers_of_rows_however_many_make_few_different_statements():
    assert len(set(inserted(range(0, 2000, 7)))) <= 15


def test_of_rows_that_may_be_there_the_others_are_inserted_once_and_in_few_statements():
    engine = create_engine("sqlite://")
    unique = Table("names", MetaData(), Column("name", Text, unique=True), Column("of", Integer))
    unique.create(engine)
    statements: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *given: statements.append(given[2]))
    with engine.begin() as connection:
        for count in range(1, 300, 3):
            rows = [{"name": f"n{number}", "of": count} for number in range(count)]
            insert_absent(connection, unique, rows)
        made = list(statements)
        stored = connection.execute(select(unique)).all()
    assert {row.name: row.of for row in stored} == {f"n{n}": -(-n // 3) * 3 + 1 for n in range(298)}
    assert len(stored) == 298
    assert len(set(made)) <= 15


def test_a_row_that_is_wrong_undoes_the_transaction_and_the_next_one_begins_anew():
    engine = create_engine("sqlite://")
    names = Table(
        "names",
        MetaData(),
        Column("name", Text, unique=True, nullable=False),
        Column("of", Integer),
    )
    names.create(engine)

    def insert() -> None:
        with engine.begin() as connection:
            assert insert_absent(connection, names, [{"name": "a", "of": 1}]) == 1
            insert_absent(connection, names, [{"name": "b", "of": 2}, {"name": None, "of": 3}])

    with pytest.raises(IntegrityError):
        insert()
    with engine.begin() as connection:
        assert insert_absent(connection, names, [{"name": "c", "of": 4}] * 2) == 1
        assert insert_absent(connection, names, [{"of": 5, "name": "c"}]) == 0
        assert connection.execute(select(names)).all() == [("c", 4)]


COLUMNS = ("kind", "number", "place", "name")


@pytest.mark.parametrize(
    ("count", "kinds", "statements"),
    [(0, 1, 0), (1, 1, 1), (50, 1, 1), (256, 1, 1), (600, 2, 4), (50, 5, 5), (50, 7, 1), (9, 2, 1)],
)
def test_what_rows_have_in_common_is_given_once_if_enough_of_them_have_it(
    count: int, kinds: int, statements: int
):
    rows = [(f"k{n % kinds}", n, None if n % kinds else "p", f"n{n}") for n in range(count)]
    engine = create_engine("sqlite://")
    table = Table("things", MetaData(), *(Column(name, Text) for name in COLUMNS))
    table.create(engine)
    made: list[tuple[str, int]] = []
    event.listen(
        engine,
        "before_cursor_execute",
        lambda *given: made.append((given[2], len(given[3]))),
    )
    with engine.begin() as connection:
        insert_rows(connection, table, COLUMNS, rows, alike=("kind", "place"))
        assert len(made) == statements
        stored = connection.execute(select(table)).all()
    assert sorted(map(tuple, stored), key=lambda row: int(row[1])) == [
        (kind, str(number), place, name) for kind, number, place, name in rows
    ]


def test_a_row_that_is_refused_leaves_none_of_the_transaction():
    engine = create_engine("sqlite://")
    unique = Table("unique_numbers", MetaData(), Column("number", Integer, unique=True))
    unique.create(engine)
    with engine.connect() as connection:
        insert_rows(connection, unique, ("number",), [(0,)])
        with pytest.raises(IntegrityError):
            insert_rows(connection, unique, ("number",), [(1,), (2,), (1,), (3,)])
        connection.rollback()
    with engine.connect() as connection:
        assert connection.execute(select(unique)).all() == []
