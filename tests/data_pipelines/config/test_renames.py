"""Former names of keys: accepted, told once, and never beside the new name."""

import logging

import pytest
from pydantic import ValidationError, model_validator

from data_pipelines.config.base import Config
from data_pipelines.config.renames import accept_former_names


class Engine(Config):
    power: int = 1

    _former_names = model_validator(mode="before")(accept_former_names({"horses": "power"}))


def test_a_former_name_is_accepted_with_one_warning_per_process(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert [Engine.model_validate({"horses": n}).power for n in (2, 3)] == [2, 3]
        assert Engine.model_validate({"power": 4}).power == 4
    assert [record.getMessage() for record in caplog.records] == [
        "the key horses is now called power; the former name will be removed: rename it."
    ]


def test_both_names_at_once_are_refused() -> None:
    with pytest.raises(ValidationError, match="horses is the former name of power: give power alone"):
        Engine.model_validate({"horses": 1, "power": 1})
    with pytest.raises(ValidationError, match="valid dictionary"):
        Engine.model_validate(3)
