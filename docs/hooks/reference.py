"""The generated pages: every config key from the pydantic models, every verb from the command itself.

MkDocs hooks, so that the pages are made at each build and cannot fall behind the code.
"""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from pydantic import BaseModel
from pydantic.fields import FieldInfo

import recsys
from data_pipelines.config.base import Config
from recsys.cli import app
from recsys.config.experiment import ExperimentConfig

BOUNDS = {
    "ge": "at least {}",
    "gt": "above {}",
    "le": "at most {}",
    "lt": "below {}",
    "min_length": "at least {} of them",
}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Name the version on every page; where an entry of the navigation is a folder, put its pages there.

    So a new lever is one page and no entry.
    """
    config.copyright = f"sparse-recsys {recsys.__version__}"
    for section in config.nav or []:
        for title, target in section.items():
            if isinstance(target, str) and (folder := Path(config.docs_dir, target)).is_dir():
                names = sorted((path.name for path in folder.glob("*.md")), key=lambda name: (name != "index.md", name))
                section[title] = [f"{target}/{name}" for name in names]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages to the site."""
    files.append(File.generated(config, "reference/config.md", content=config_page()))
    files.append(File.generated(config, "reference/cli.md", content=command_page()))
    files.append(File.generated(config, "reference/api.md", content=api_page()))
    return files


def config_page() -> str:
    """The reference of every key an experiment's YAML may have."""
    lines = [
        "# Config keys",
        "",
        "Made from the code. One YAML is one experiment; an unknown key is refused, and the nearest known one named.",
        "Any key can be set on the command line: `recsys train CONFIG DATASET RUN train.batch_size=1024`.",
        "",
    ]
    for path, model in _models(ExperimentConfig):
        level = "###" if "." in path else "##"
        kind = _kind_of(model)
        title = (f"`{path}`" if path else "The whole file") + (f", kind `{kind}`" if kind else "")
        lines += [f"{level} {title} {{ #{_anchor(model)} }}", "", *_prose(model), ""]
        fields = {name: field for name, field in model.model_fields.items() if not (kind and name == "kind")}
        if fields:
            lines += ["| key | value | default | |", "|---|---|---|---|"]
            said = _said_of_fields(model)
            lines += [_row(name, field, said.get(name, "")) for name, field in fields.items()]
            lines.append("")
    return "\n".join(lines)


def command_page() -> str:
    """The reference of every verb, its arguments and options."""
    command = typer.main.get_command(app)
    lines = [
        "# The `recsys` command",
        "",
        "Made from the code. Exit codes: 0 done; 2 your input or config is at fault, with one sentence on standard "
        "error; 1 anything else. With `--json` the last line of standard output is one JSON object of the result.",
        "",
    ]
    for path, verb in _verbs(command, "recsys"):
        lines += [f"## `{path}`", "", inspect.cleandoc(verb.help or ""), ""]
        lines += ["```text", " ".join([path, *map(_argument, verb.params)]), "```", ""]
        options = [parameter for parameter in verb.params if getattr(parameter, "help", None)]
        if options:
            lines += ["| | |", "|---|---|"]
            for parameter in options:
                names = parameter.opts if parameter.param_type_name == "option" else [_named(parameter)]
                lines.append(f"| `{'`, `'.join(names)}` | {_cell(str(parameter.help))} |")
            lines.append("")
    return "\n".join(lines)


def api_page() -> str:
    """The reference of every public name of ``recsys``: its signature, and its docstring."""
    lines = [
        "# Python names",
        "",
        "Made from the code: every name of `import recsys as rs`. [Python API](python.md) shows them at work.",
        "",
    ]
    for name in sorted(recsys.__all__, key=str.lower):
        value = getattr(recsys, name)
        if callable(value):
            lines += [f"## `rs.{name}`", "", *_described(f"rs.{name}", value), ""]
            for method, function in _public_methods(value):
                lines += [f"### `{name}.{method}`", "", *_described(method, function), ""]
    return "\n".join(lines)


def _public_methods(value: Any) -> Iterator[tuple[str, Any]]:
    """Documented methods and properties that a class of ours defines itself."""
    if inspect.isclass(value):
        for name, member in vars(value).items():
            function = member.__func__ if isinstance(member, classmethod | staticmethod) else member
            if (
                not name.startswith("_")
                and inspect.getdoc(function)
                and (callable(function) or isinstance(member, property))
            ):
                yield name, function


def _described(name: str, value: Any) -> list[str]:
    """The signature in a block, and the docstring as Markdown."""
    lines: list[str] = []
    is_model = inspect.isclass(value) and issubclass(value, BaseModel)
    if not is_model and not isinstance(value, property):
        lines += ["```text", f"{name}{_signature(value)}", "```", ""]
    return lines + list(_docstring(inspect.getdoc(value) or ""))


def _signature(value: Any) -> str:
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):
        return "(...)"
    plain = [
        p.replace(annotation=inspect.Parameter.empty)
        for p in signature.parameters.values()
        if p.name not in ("self", "cls")
    ]
    return re.sub(
        r"<[^<>]*>", "...", str(signature.replace(parameters=plain, return_annotation=inspect.Signature.empty))
    )


def _docstring(text: str) -> Iterator[str]:
    """A docstring as Markdown: its sections become lists, its examples blocks of code."""
    title, *sections = re.split(r"^(Args|Attributes|Returns|Raises|Example):\n", text, flags=re.MULTILINE)
    yield from _markdown(title).splitlines()
    for heading, body in zip(sections[::2], sections[1::2], strict=True):
        body = inspect.cleandoc(f"\n{body}")
        yield from ["", f"**{heading}**", ""]
        if heading == "Example":
            yield from ["```text", *(line.partition("  # doctest:")[0] for line in body.splitlines()), "```"]
        elif heading == "Returns":
            yield from _markdown(body).splitlines()
        else:
            for entry in re.split(r"^(?=\S)", body, flags=re.MULTILINE)[1:]:
                names, colon, said = entry.partition(": ")
                yield f"- `{names}`: {_cell(_markdown(said))}" if colon else f"- {_cell(_markdown(entry))}"


def _argument(parameter: Any) -> str:
    """A parameter as a usage line shows it."""
    if parameter.param_type_name == "argument":
        name = _named(parameter)
        return name if parameter.required or name.startswith("[") else f"[{name}]"
    return f"[{parameter.opts[0]}]"


def _named(argument: Any) -> str:
    return str(argument.metavar or argument.name.upper())


def _verbs(group: Any, path: str) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _verbs(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


def _models(root: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    """Every model of the tree under ``root`` with the path of keys that first leads to it, block by block."""
    seen: set[type[BaseModel]] = set()

    def walk(path: str, model: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
        if model in seen:
            return
        seen.add(model)
        yield path, model
        for name, field in model.model_fields.items():
            for suffix, inner in _inner(field.annotation):
                yield from walk(f"{path}.{name}{suffix}".lstrip("."), inner)

    yield from walk("", root)


def _inner(annotation: Any, suffix: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """Models inside an annotation, each with what its container adds to the path (``.<name>``, ``[]``)."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield from ((suffix, model) for model in _alternatives(annotation))
        return
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        arguments = arguments[:1]
    elif origin is dict:
        suffix, arguments = suffix + ".<name>", arguments[1:]
    elif origin in (list, tuple):
        suffix += "[]"
    for argument in arguments:
        if origin is not Literal:
            yield from _inner(argument, suffix)


def _alternatives(model: type[BaseModel]) -> tuple[type[BaseModel], ...]:
    """The registered kinds of a family; any other model itself."""
    return model.alternatives() if issubclass(model, Config) else (model,)


def _row(name: str, field: FieldInfo, said: str) -> str:
    bounds = [text.format(value) for key, text in BOUNDS.items() for value in _bound(field, key)]
    meaning = " ".join(part for part in (field.description or said, ", ".join(bounds).capitalize()) if part)
    meaning = meaning + "." if bounds else meaning
    return f"| `{name}` | {_type(field.annotation)} | {_default(field)} | {_cell(meaning)} |"


def _bound(field: FieldInfo, key: str) -> Iterator[Any]:
    for constraint in field.metadata:
        value = getattr(constraint, key, None)
        if value is not None:
            yield value


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True, validated_data={})
    if isinstance(value, BaseModel):
        return ""
    return f"`{_yaml(value)}`"


def _yaml(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_yaml, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_yaml(entry)}" for key, entry in value.items()) + "}"
    return str(value)


def _type(annotation: Any) -> str:
    """An annotation in a reader's words, with links to the models it names."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        links = (f"[{_kind_of(model) or 'keys'}](#{_anchor(model)})" for model in _alternatives(annotation))
        return " or ".join(links)
    if annotation in (None, NoneType):
        return "null"
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(arguments[0])
    if origin is Literal:
        return ", ".join(f"`{_yaml(value)}`" for value in arguments)
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(_type(argument) for argument in arguments))
    if origin is dict:
        return f"name → {_type(arguments[1])}"
    if origin in (list, tuple):
        return f"list of {_type(arguments[0])}"
    return {str: "text", int: "whole number", float: "number", bool: "`true`, `false`"}.get(annotation, "any")


def _prose(model: type[BaseModel]) -> list[str]:
    """What a model's docstring says, without the part on its fields."""
    return _markdown(inspect.cleandoc(model.__doc__ or "").partition("Attributes:")[0]).splitlines()


def _said_of_fields(model: type[BaseModel]) -> dict[str, str]:
    """What the docstrings of a model and its bases say of their fields under ``Attributes:``."""
    said: dict[str, str] = {}
    for base in reversed(model.__mro__):
        if issubclass(base, BaseModel) and base is not BaseModel:
            listed = inspect.cleandoc(base.__doc__ or "").partition("Attributes:\n")[2]
            entries = re.split(r"^    (?=\w+: )", listed, flags=re.MULTILINE)
            said |= {
                name: _markdown(text) for name, colon, text in (entry.partition(": ") for entry in entries) if colon
            }
    return said


def _markdown(text: str) -> str:
    return re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text).replace("``", "`").strip()


def _kind_of(model: type[BaseModel]) -> str | None:
    kind = model.model_fields.get("kind")
    values = get_args(kind.annotation) if kind is not None and get_origin(kind.annotation) is Literal else ()
    return str(values[0]) if len(values) == 1 else None


def _anchor(model: type[BaseModel]) -> str:
    return f"{model.__module__}.{model.__name__}".replace(".", "-").replace("_", "-").lower()


def _cell(text: str) -> str:
    return " ".join(text.replace("``", "`").replace("|", "\\|").split())
