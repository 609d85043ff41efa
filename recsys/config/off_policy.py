"""The block ``off_policy``: which policy of a trained model is evaluated on logged decisions."""

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from data_pipelines.config.base import Config


class OffPolicyConfig(Config):
    """How ``recsys evaluate --off-policy`` reads logged decisions, and which policy it makes of a model's scores.

    With ``action`` every row is a decision: the action that was taken, of all that occur in the log. With ``position``
    every row is a place in a list: the row that was shown there, of all rows of its list (see ``data.group``).
    """

    propensity: str = Field(
        description="The column that holds the chance, above 0 and up to 1, with which the logged policy chose the "
        "action of the row; with `position`, with which it showed the row at its position."
    )
    action: list[str] | None = Field(
        default=None,
        min_length=1,
        description="The column of the action, such as `item_id`; a list if other columns of the log belong to the "
        "action too, its id first. Columns that side tables join to it belong to it in any case.",
    )
    position: str | None = Field(default=None, description="The column of the position in the list.")
    policy: Literal["greedy", "softmax", "uniform"] = Field(
        default="greedy",
        description="`greedy` takes the action of the highest score, or orders lists by it. `softmax` draws actions, "
        "or orders (Plackett-Luce), by exp(logit / temperature). `uniform` reads no scores: all actions are alike.",
    )
    temperature: float = Field(
        default=1.0, gt=0, description="Temperature of `softmax`: the higher, the more equal the chances."
    )
    clip: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Smaller propensities are raised to this value: a smaller variance, at the price of a bias.",
    )
    task: str | None = Field(default=None, description="The task whose label is the reward; the first one if absent.")
    draws: int = Field(default=1000, ge=10, description="Bootstrap draws of the intervals.")

    @field_validator("action", mode="before")
    @classmethod
    def _one_column(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_kind(self) -> "OffPolicyConfig":
        if (self.action is None) == (self.position is None):
            raise ValueError(
                "set either `action`, the column that says what was chosen in each row, or `position`, if rows are "
                "places of lists"
            )
        return self
