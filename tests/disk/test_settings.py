"""The watchdog's configuration file: valid and invalid contents."""

import os
from pathlib import Path

import pytest

from echotts.disk.settings import Root, load_settings

EXAMPLE = Path(__file__).parents[2] / "docs" / "watchdog.toml"


def load(tmp_path, text):
    path = tmp_path / "watchdog.toml"
    path.write_text(text)
    return load_settings(path)


def test_the_example_in_the_docs_is_read_and_shows_every_key():
    found = load_settings(EXAMPLE)
    assert {root.kind for root in found.roots} == {"partial", "shards", "logs", "hub", "runs"}
    assert Path("/tmp/tpu_logs") in [root.path for root in found.roots]
    text = EXAMPLE.read_text()
    keys = [*vars(found.limits), *vars(found.roots[0])]
    assert [key for key in keys if f"{key} = " not in text] == []


def test_limits_default_if_missing_in_the_file(tmp_path):
    found = load(tmp_path, f'[[root]]\nkind = "logs"\npath = "{tmp_path}/logs"\n')
    assert (found.limits.start, found.limits.stop, found.limits.pause) == (0.85, 0.75, 0.97)
    assert "*.log" in found.roots[0].patterns
    assert found.roots[0].min_age_s == 24 * 3600


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", r"no root: give at least one \[\[root\]\]"),
        ("[limits", "not valid TOML"),
        (
            '[limits]\nstrat = 0.8\n[[root]]\nkind = "logs"\npath = "/x/logs"',
            "unknown field 'strat': known fields are interval_s",
        ),
        ('[limits]\nstart = 0.7\n[[root]]\nkind = "logs"\npath = "/x/logs"', "stop 0.75 <= start 0.7"),
        ('[limits]\nresume = 0.98\n[[root]]\nkind = "logs"\npath = "/x/logs"', "resume 0.98 between stop and pause"),
        (
            '[limits]\nstart = "much"\n[[root]]\nkind = "logs"\npath = "/x"',
            r"\[limits\]: start: Expected float, got str",
        ),
        ('[[root]]\nkind = "logs"', "needs kind and path"),
        ('[[root]]\nkind = "log"\npath = "/x/logs"', "kind 'log' must be one of partial, shards"),
        ('[[root]]\nkind = "logs"\npath = "logs"', "a root must be an absolute path"),
        ('[[root]]\nkind = "logs"\npath = "/x/../y"', r"without \.\."),
        ('[[root]]\nkind = "logs"\npath = "/"', "/ must not be a root"),
        ('[[root]]\nkind = "logs"\npath = "~"', "must not be a root"),
        ('[[root]]\nkind = "runs"\npath = "/x/runs"\nnames = ["*"]', "names applies to kind partial, shards, logs"),
        ('[[root]]\nkind = "logs"\npath = "/x/logs"\nkeep_last = 2', "keep_last applies to kind runs"),
        ('[[root]]\nkind = "logs"\npath = "/x/logs"\nnames = ["a/*"]', "without folders"),
        ('[[root]]\nkind = "logs"\npath = "/x"\n[[root]]\nkind = "runs"\npath = "/x/runs"', "overlaps the root /x"),
    ],
)
def test_a_file_that_is_wrong_is_refused_in_one_line(tmp_path, text, said):
    with pytest.raises(ValueError, match=said) as caught:
        load(tmp_path, text)
    assert str(caught.value).startswith(f"{tmp_path}/watchdog.toml: ")
    assert "\n" not in str(caught.value)


def test_the_folders_above_the_home_folder_are_refused(monkeypatch, tmp_path):
    home = tmp_path / "people" / "ann"
    home.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    for place in (home, home.parent):
        with pytest.raises(ValueError, match="must not be a root"):
            Root(kind="logs", path=place)
    assert Root(kind="logs", path=home / "logs").path == home / "logs"


def test_symlinks_and_folders_behind_them_are_rejected_as_roots(tmp_path):
    (tmp_path / "real" / "logs").mkdir(parents=True)
    os.symlink(tmp_path / "real", tmp_path / "link")
    for place in (tmp_path / "link", tmp_path / "link" / "logs"):
        with pytest.raises(ValueError, match=f"reached through a symlink; give the folder itself, {tmp_path}/real"):
            Root(kind="logs", path=place)
    os.symlink("/", tmp_path / "everything")
    with pytest.raises(ValueError, match="/ must not be a root"):
        Root(kind="logs", path=tmp_path / "everything")
