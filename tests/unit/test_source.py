from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from airflow_llm_provider.core.request import Position
from airflow_llm_provider.exceptions import ConfigurationError, DuplicateIdError, SourceError
from airflow_llm_provider.storage.source import ListSource

ROWS = [{"custom_id": f"r{number}", "text": "x" * number} for number in range(5)]


class Lazy(Sequence[Any]):
    """What Airflow hands out for a mapped task's output: no list, and each look costs a call."""

    def __init__(self, items: list[Any]) -> None:
        self._items = items
        self.looks = 0

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: Any) -> Any:
        self.looks += 1
        return self._items[index]


def test_rows_come_chunk_by_chunk() -> None:
    source = ListSource(ROWS)
    scan = source.scan(2)
    assert scan.plan.starts == ((0, 0, 0), (0, 2, 2), (0, 4, 4))
    rows = [row for number in range(3) for row in source.rows(scan.snapshot, scan.plan.chunk(number))]
    assert [row.index for row in rows] == [0, 1, 2, 3, 4]
    assert [row.raw for row in rows] == ROWS
    assert rows[3].position == Position(file="", line=3)
    assert str(rows[3].position) == "item 3"


def test_a_lazy_sequence_is_read_once_and_is_the_same_input() -> None:
    lazy = Lazy(ROWS)
    source = ListSource(lazy)
    assert source.scan(2).digest == ListSource(ROWS).scan(2).digest
    assert lazy.looks <= len(ROWS) + 1


def test_an_empty_list_is_an_input_without_rows() -> None:
    assert ListSource([]).scan(10).plan.total_rows == 0


@pytest.mark.parametrize(
    ("items", "words"),
    [(["a"], "item 0 is a str"), ([{}, None], "item 1 is a NoneType"), ([{}, [1]], "item 1 is a list")],
)
def test_items_that_are_no_rows(items: list[Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        ListSource(items)


@pytest.mark.parametrize("value", [object(), {1, 2}, b"bytes"])
def test_rows_that_json_cannot_say(value: Any) -> None:
    with pytest.raises(ConfigurationError, match="JSON cannot say"):
        ListSource([{"text": value}]).scan(10)


def test_repeated_ids_are_named() -> None:
    with pytest.raises(DuplicateIdError, match="'r1' stands twice in the source: item 1 and item 5"):
        ListSource([*ROWS, {"custom_id": "r1"}]).scan(10)


def test_changed_rows_are_noticed_and_the_order_of_keys_is_no_change() -> None:
    snapshot = ListSource(ROWS).scan(2).snapshot
    assert ListSource([dict(reversed(row.items())) for row in ROWS]).check(snapshot) == []
    with pytest.raises(SourceError, match="not those the run began with"):
        ListSource(list(reversed(ROWS))).check(snapshot)
