"""Small HTML tables for notebooks: what ``_repr_html_`` of the product's objects gives."""

from collections.abc import Mapping
from html import escape


def html_table(title: str, rows: Mapping[str, object]) -> str:
    """A titled table of two columns, every text escaped.

    Args:
        title: The heading, such as the kind and path of an object.
        rows: Values by name. Numbers are grouped or rounded, mappings and sequences joined by commas.
    """
    body = "".join(
        f'<tr><th style="text-align: left">{escape(name)}</th><td>{escape(_text(value))}</td></tr>'
        for name, value in rows.items()
    )
    return f"<table><caption>{escape(title)}</caption><tbody>{body}</tbody></table>"


def _text(value: object) -> str:
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_text(entry)}" for name, entry in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value))
    return str(value)
