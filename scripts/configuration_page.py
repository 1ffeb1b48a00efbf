"""MkDocs hook that generates docs/configuration.md, all configuration keys, from the dataclasses in echotts/config/."""

import dataclasses
import typing
from collections.abc import Iterable, Iterator
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from echotts import config as configs

PAGE = "configuration.md"
HEAD = """# Configuration

All configuration keys of a training. Each is a flag: `echotts train --preset 1.3b --optim.learning_rate 2e-4`.
A preset is a set of defaults; if presets differ, the table has a value for each. `config.json` in the run
directory contains the resolved configuration. This page is generated from `echotts/config/`.
"""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the page to those in docs/."""
    files.append(File.generated(config, PAGE, content=page()))
    return files


def page() -> str:
    """The page in Markdown: a section per dataclass in `Config`, nested ones after their owner."""
    module = griffe.load("echotts.config", search_paths=["."])
    presets = {name: configs.preset(name) for name in configs.PRESETS}
    sections = [_section(module, name, list(presets), values) for name, values in _sections("", presets.values())]
    return HEAD + "".join(sections)


def _sections(prefix: str, owners: Iterable[Any]) -> Iterator[tuple[str, list[Any]]]:
    """(dotted name, its value in each preset) of each dataclass below the owners, which are those of the presets."""
    owners = list(owners)
    for field in dataclasses.fields(owners[0]):
        values = [getattr(owner, field.name) for owner in owners]
        if dataclasses.is_dataclass(values[0]):
            yield f"{prefix}{field.name}", values
            yield from _sections(f"{prefix}{field.name}.", values)


def _section(module: griffe.Module, name: str, presets: list[str], values: list[Any]) -> str:
    kind = type(values[0])
    documented = module[kind.__name__]
    lines = [
        f"\n## {name}\n\n{documented.docstring.value}\n",
        "| key | type | default | what it is |\n|---|---|---|---|",
    ]
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        found = [getattr(value, field.name) for value in values]
        if dataclasses.is_dataclass(found[0]):
            continue
        texts = [_shown(value) for value in found]
        default = texts[0]
        if len(set(texts)) > 1:
            default = "<br>".join(f"{preset}: {text}" for preset, text in zip(presets, texts, strict=True))
        docstring = documented.attributes[field.name].docstring
        what = " ".join(docstring.value.split()) if docstring else ""
        lines.append(f"| `{name}.{field.name}` | {_type_name(hints[field.name])} | {default} | {_escaped(what)} |")
    return "\n".join(lines) + "\n"


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(_shown, value)) or "none"
    if isinstance(value, configs.Bucket):
        return f"`{value.frames}x{value.tokens}`"
    if value is None:
        return "none"
    return f"`{value}`" if value != "" else "empty"


def _type_name(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return " or ".join(f"`{value}`" for value in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        return f"{_type_name(typing.get_args(hint)[0])}, several"
    if typing.get_args(hint):
        return " or ".join(_type_name(part) for part in typing.get_args(hint))
    return {configs.Bucket: "FRAMESxTOKENS", type(None): "none"}.get(hint, f"`{hint.__name__}`")


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")
