"""The notebooks run from top to bottom, use ``import recsys as rs`` alone, and are stored without outputs.

Their cells run in one namespace of this process: no kernel is needed, and what a cell ends with is shown as a notebook
would show it.
"""

import ast
import json
from pathlib import Path
from typing import Any

import pytest
from test_examples import in_this_process

FOLDER = Path(__file__).parents[1] / "examples" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
CHEAPER = {"seeds: 2, leave_one_out: [product, bought_before]": "seeds: 1, leave_one_out: [product]"}
"""What the tests run with fewer trainings."""
ALLOWED = {"dataclasses", "pathlib", "polars", "recsys", "tempfile"}


def code(notebook: Path) -> list[str]:
    cells = json.loads(notebook.read_text())["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def show(value: Any) -> str:
    """What a notebook shows of the last expression of a cell."""
    return str(value._repr_html_()) if hasattr(value, "_repr_html_") else repr(value)


def run(notebook: Path) -> list[str]:
    """Run the cells; what each shows."""
    names: dict[str, Any] = {}
    shown = []
    for number, source in enumerate(code(notebook), 1):
        for dear, cheap in CHEAPER.items():
            source = source.replace(dear, cheap)
        body = ast.parse(source).body
        last = body.pop() if isinstance(body[-1], ast.Expr) else None
        place = f"{notebook.name}, cell {number}"
        exec(compile(ast.Module(body, []), place, "exec"), names)
        if isinstance(last, ast.Expr):
            shown.append(show(eval(compile(ast.Expression(last.value), place, "eval"), names)))
    return shown


def test_there_are_three() -> None:
    assert [notebook.stem for notebook in NOTEBOOKS] == ["own-log", "sparsity", "study"]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
def test_it_is_stored_without_outputs_and_imports_no_inner_module(notebook: Path) -> None:
    content = json.loads(notebook.read_text())
    assert (content["nbformat"], content["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in content["cells"]}) == len(content["cells"])
    for cell in content["cells"]:
        assert cell["cell_type"] == "markdown" or (cell["outputs"], cell["execution_count"]) == ([], None)
    nodes = [node for source in code(notebook) for node in ast.walk(ast.parse(source))]
    imported = {name.name for node in nodes if isinstance(node, ast.Import) for name in node.names}
    imported |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
    assert imported <= ALLOWED


def test_what_is_replaced_to_be_cheaper_is_there() -> None:
    sources = "".join(source for notebook in NOTEBOOKS for source in code(notebook))
    assert all(dear in sources for dear in CHEAPER)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("own-log", ["Dataset", "Run", "Evaluation", "Artifact", "bought"]),
        ("study", ["Ablation", "<svg", "product", "verdict"]),
        ("sparsity", ["Run", "rows not zero", "4 bits, half of the rows", "checkpoint_bytes"]),
    ],
)
def test_it_runs(name: str, expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FOLDER)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("recsys.ablation.ablate.processes", in_this_process)
    monkeypatch.setattr("recsys.ablation.ablate.write_study", lambda study, findings, out: None)  # seconds of drawing
    shown = "\n".join(run(FOLDER / f"{name}.ipynb"))
    assert [text for text in expected if text not in shown] == []
