"""The model card as ``README.md`` with the metadata that the Hugging Face Hub reads."""

import math
from typing import Any

import yaml

from serving.artifact.card import ModelCard

_TASKS = {"binary": "tabular-classification"} | dict.fromkeys(
    ("regression", "count", "duration", "ordinal"), "tabular-regression"
)


def hub_card(card: ModelCard, kinds: dict[str, str], usage: str) -> str:
    """Markdown with YAML front matter: library, task, and the metrics of each split as ``model-index``.

    Args:
        card: The model card of an artifact.
        kinds: By task, its kind: ``binary``, ``regression`` or ``count``.
        usage: Markdown on how to score with the folder that the card is for.
    """
    first, kind = next(iter(kinds.items()))
    metadata: dict[str, Any] = {
        "library_name": "sparse-recsys",
        "pipeline_tag": _TASKS[kind],
        "tags": ["recommender-systems", "tabular", "sparse-embeddings"],
        "model-index": [{"name": card.name, "results": list(_results(card, first, _TASKS[kind]))}],
    }
    front = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)
    rows = ", ".join(f"{count:,} {split}" for split, count in card.training.rows.items())
    lines = [
        f"---\n{front}---\n",
        f"# {card.name}\n",
        f"A recommender that predicts {', '.join(kinds)}, made with sparse-recsys.\n",
        f"- Features: {', '.join(card.training.features) or 'unknown'}",
        f"- Rows: {rows or 'unknown'}",
        f"- Made with: {', '.join(f'{name} {version}' for name, version in card.versions.items())}\n",
        *_tables(card),
        "## Use\n",
        usage,
    ]
    return "\n".join(lines) + "\n"


def _results(card: ModelCard, task: str, pipeline: str) -> Any:
    for split, metrics in card.metrics.items():
        measured = [
            {"type": name, "name": name, "value": round(value, 6)}
            for name, value in metrics.first.items()
            if math.isfinite(value)
        ]
        if measured:
            yield {
                "task": {"type": pipeline, "name": task},
                "dataset": {"type": "tabular", "name": f"{split} split"},
                "metrics": measured,
            }


def _tables(card: ModelCard) -> list[str]:
    lines = []
    for split, metrics in card.metrics.items():
        values = [f"| {name} | {value:.5g} |" for name, value in metrics.first.items() if math.isfinite(value)]
        if values:
            lines += [f"## Metrics on the {split} split\n", "| | |\n|---|---|", *values, ""]
    return lines
