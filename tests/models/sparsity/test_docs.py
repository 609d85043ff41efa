"""Every config that a lever's page offers is one that works."""

import re
from pathlib import Path

import pytest
import yaml

from models.sparsity.config import SparsityConfig

PAGES = sorted((Path(__file__).parents[3] / "docs" / "levers").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_config_of_a_page_is_accepted(page: Path) -> None:
    for block in re.findall(r"```yaml\n(.*?)```", page.read_text(), re.DOTALL):
        SparsityConfig.model_validate(yaml.safe_load(block)["sparsity"])


def test_every_lever_has_a_page() -> None:
    text = "\n".join(page.read_text() for page in PAGES)
    for name in SparsityConfig.model_fields:
        assert f"`{name}`" in text
