"""Checks of the documentation: links to files, and commands that exist."""

import ast
import itertools
import re
from pathlib import Path

import pytest

from echotts.cli.main import COMMANDS

ROOT = Path(__file__).parent.parent
GENERATED = {"configuration.md"}  # by scripts/configuration_page.py
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob(".github/*.md")])


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_paths_lead_to_files_and_commands_exist(document: Path) -> None:
    text = document.read_text()
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target]
    dead = [target for target in targets if target and not (document.parent / target).exists()]
    assert set(dead) <= GENERATED
    named = set(re.findall(r"`((?:docs|echotts|launch|scripts|tests|benchmarks)/[\w./]+\.\w+)`", text))
    assert not {path for path in named if not (ROOT / path).exists()}
    called = set(re.findall(r"^ {4}(?:python -m )?echotts (\w+)", text, re.MULTILINE))
    assert called <= set(COMMANDS)


def test_every_page_is_listed_in_the_index_and_in_the_navigation() -> None:
    docs = ROOT / "docs"
    pages = {str(path.relative_to(docs)) for path in docs.glob("**/*.md")} - {"index.md"} | GENERATED
    assert pages == set(re.findall(r"\]\(([\w/-]+\.md)\)", (docs / "index.md").read_text()))
    assert pages == set(re.findall(r"- ([\w/-]+\.md)", (ROOT / "mkdocs.yml").read_text())) - {"index.md"}


def test_every_configuration_key_is_documented() -> None:
    """The page of configuration keys and `echotts train --help` are made of these docstrings."""
    modules = [ast.parse(path.read_text()) for path in sorted((ROOT / "echotts/config").glob("*.py"))]
    classes = [node for module in modules for node in module.body if isinstance(node, ast.ClassDef)]
    nested = {node.name for node in classes}
    bare = [
        f"{owner.name}.{ast.unparse(key.target)}"
        for owner in classes
        for key, after in itertools.pairwise([*owner.body, None])
        if isinstance(key, ast.AnnAssign) and ast.unparse(key.annotation) not in nested
        if not (isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant))
    ]
    assert bare == ["Config.preset"]
