"""Tables for notebooks escape what they show."""

from data_pipelines.notebook import html_table


def test_values_are_escaped_grouped_and_rounded() -> None:
    rows = {"<name>": "<script>", "rows": {"train": 12_345}, "auc": 0.123456789, "features": ["a", "b"], "done": True}
    table = html_table("A & B", rows)
    assert "<script>" not in table
    assert "&lt;script&gt;" in table
    assert "<caption>A &amp; B</caption>" in table
    for text in ("train 12,345", "0.12346", "a, b", "True"):
        assert f"<td>{text}</td>" in table
