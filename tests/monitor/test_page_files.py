"""Static files of the page, without a browser: vendored files are unmodified, and texts are not interpreted."""

import hashlib
import re
from pathlib import Path

import echotts.monitor
from echotts.rundir.metrics import EVENTS, METRICS

STATIC = Path(echotts.monitor.__file__).parent / "static"
VENDORED = "uPlot"
OURS = sorted(path for path in STATIC.iterdir() if not path.name.startswith(VENDORED))
MODULES = [path for path in OURS if path.suffix == ".js"]

# of the files in the package uplot 1.6.32 of the npm registry
UPLOT = {
    "uPlot.iife.min.js": "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f",
    "uPlot.min.css": "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04",
    "uPlot.LICENSE.txt": "8f989229699b4fe2f1a0432d0e9edc338a8a911e250e2d1b01ecd770a5f5b1bd",
}


def test_uplot_is_the_published_one_with_its_licence() -> None:
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in STATIC.glob(f"{VENDORED}*")}
    assert found == UPLOT


def test_no_text_of_a_run_can_become_markup_or_code() -> None:
    banned = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|\.cssText|srcdoc|DOMParser"
    assert [(path.name, found) for path in MODULES for found in re.findall(banned, path.read_text())] == []


def test_the_page_holds_no_script_or_style_and_asks_no_other_server() -> None:
    page = (STATIC / "page.html").read_text()
    assert re.findall(r"<style|\sstyle=|\son[a-z]+=|<script(?![^>]*\ssrc=)", page) == []
    addresses = [
        address for path in OURS for address in re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s\"']*", path.read_text())
    ]
    assert addresses == ["http://www.w3.org/2000/svg"]
    assert set(re.findall(r'(?:src|href)="static/([^"]+)"', page)) <= {path.name for path in STATIC.iterdir()}


def test_modules_import_only_existing_names() -> None:
    for path in MODULES:
        for name, source in re.findall(r'import \{([^}]+)\} from "\./([^"]+)"', path.read_text()):
            exported = set(
                re.findall(r"^export (?:async )?(?:function|class|const) (\w+)", (STATIC / source).read_text(), re.M)
            )
            assert {word.strip() for word in name.split(",")} <= exported, f"{path.name} imports from {source}"


def test_the_page_uses_existing_metric_and_event_names() -> None:
    texts = "".join(path.read_text() for path in MODULES)
    named = set(re.findall(r'"((?:loss|grad|optim|param|data|time|throughput|host|device|heldout)/\w+)"', texts))
    assert len(named) > 15
    assert named <= set(METRICS)
    events = (STATIC / "tables.js").read_text().partition("const EVENTS = {")[2].partition("\n};")[0]
    assert set(re.findall(r"^  (\w+): \{", events, re.M)) == set(EVENTS)


def test_every_element_that_a_module_asks_for_is_in_the_page() -> None:
    page = (STATIC / "page.html").read_text()
    asked = {name for path in MODULES for name in re.findall(r'byId\("([^"]+)"\)', path.read_text())}
    assert asked <= set(re.findall(r'\bid="([^"]+)"', page))
    assert len(re.findall(r'\bid="', page)) == len(set(re.findall(r'\bid="([^"]+)"', page)))
