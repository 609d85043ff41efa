"""What cannot be read of a request is refused with the row, the column and the value; mixes of spellings are scored."""

from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

ROW = {"time": 1_700_000_000, "user": "u1", "item": "i1", "device": "phone", "tags": ["a"], "price": 3}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path


def score(client: TestClient, *changes: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    answer = client.post("/v1/score", json={"rows": [ROW | change for change in changes]})
    return answer.status_code, answer.json()


@pytest.mark.parametrize("time", [20240105, "2024010510", "5.1.2024", "soon"])
def test_an_unreadable_time_is_refused_and_a_missing_one_is_scored(client: TestClient, time: Any) -> None:
    status, answer = score(client, {}, {"time": time})
    assert status == 422
    assert f"rows[1]: time is {time!r}, neither an ISO 8601 time nor a count from 1970" in answer["detail"]
    assert score(client, {}, {"time": None})[0] == 200


def test_an_unreadable_number_is_refused(client: TestClient) -> None:
    status, answer = score(client, {"price": "3"}, {"price": "cheap"})
    assert (status, answer["detail"]) == (422, "rows[1]: price is 'cheap', no number.")


def test_unknown_values_are_counted_in_the_answer(client: TestClient) -> None:
    answer = score(client, {"device": "toaster"}, {"device": None})[1]
    assert answer["unknown"]["device"] == 1


@pytest.mark.parametrize("values", [[2**64 - 1, "r1"], [True, "r1"], [17, 17.5, "r1"], [2**64 - 1], [2**70]])
def test_values_of_several_types_are_ids(client: TestClient, values: list[Any]) -> None:
    assert score(client, *({"item": value} for value in values))[0] == 200


def test_null_empty_and_missing_bags_are_alike_and_a_text_among_lists_is_named(client: TestClient) -> None:
    status, answer = score(client, {"tags": None}, {"tags": []}, {"tags": ""})
    assert status == 200
    assert len({row["click"] for row in answer["scores"]}) == 1
    status, answer = score(client, {}, {"tags": "a|b"})
    assert status == 422
    assert answer["detail"].startswith("rows[1]: tags is 'a|b', and other rows have lists there")


def test_no_rows_have_no_scores(client: TestClient) -> None:
    answer = client.post("/v1/score", json={"rows": []})
    assert (answer.status_code, answer.json()["scores"]) == (200, [])
