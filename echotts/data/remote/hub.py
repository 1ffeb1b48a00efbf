"""Shards in datasets on the Hugging Face Hub: `hf://datasets/ORG/NAME[@REVISION][/PATTERN]`.

Files are listed once with huggingface_hub, at the commit that the revision names at that moment. From then on every
URL contains the commit, so that nothing changes during a run. HF_ENDPOINT and the Hub's token are respected.
"""

import fnmatch
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import quote, unquote

from echotts.data.remote.shard_file import ShardFile
from echotts.data.remote.sources import expand_braces, is_glob, is_shard
from echotts.data.remote.web import Unavailable

SCHEME = "hf"
API_TIMEOUT_S = 30.0
_URL = re.compile(r"hf://datasets/([\w.-]+/[\w.-]+)(?:@([^/]+))?(?:/(.*))?", re.IGNORECASE)

T = TypeVar("T")


@dataclass(frozen=True)
class HubPath:
    """A file, a folder or a pattern in a dataset on the Hub."""

    repository: str
    revision: str | None
    path: str

    @property
    def url(self) -> str:
        at = "" if self.revision is None else f"@{quote(self.revision, safe='')}"
        return f"hf://datasets/{self.repository}{at}/{self.path}"


def parse(url: str) -> HubPath:
    """Parses an hf:// URL. A slash in a revision is written %2F, as in refs%2Fpr%2F1."""
    found = _URL.fullmatch(url)
    if found is None:
        raise ValueError(f"{url}: shards on the Hub are named hf://datasets/ORG/NAME@REVISION/path-{{000..099}}.tar")
    return HubPath(found[1], unquote(found[2]) if found[2] else None, found[3] or "")


def commit_of(spec: str) -> str:
    """The commit that the revision in `spec` (default: the main branch) currently names.

    FileNotFoundError if dataset or revision do not exist or are not accessible; Unavailable if the Hub does not answer.
    """
    hub = parse(spec)

    def ask() -> str:
        from huggingface_hub import HfApi

        commit = HfApi().dataset_info(hub.repository, revision=hub.revision, timeout=API_TIMEOUT_S).sha
        if not commit:
            raise Unavailable(f"{spec}: the Hub returned no commit")
        return commit

    return _ask(spec, ask)


def list_files(spec: str, commit: str, suffixes: Sequence[str], extra: Sequence[str] = ()) -> list[ShardFile]:
    """The files that `spec` (with braces, globs, or a folder) names at a commit, in the order of the pattern.

    `extra` are names of files that are listed last, if a folder of the shards has them. FileNotFoundError if a file of
    a range does not exist, or nothing matches.
    """
    hub = parse(spec)
    patterns = [_cleaned(hub, path, suffixes) for path in expand_braces(hub.path)]
    folders = {_fixed_folder(pattern) for pattern in patterns}
    found: dict[str, Any] = {}
    for folder in sorted(folders):
        below = f"{folder}/" if folder else ""
        deep = any("/" in pattern.removeprefix(below) for pattern in patterns if _fixed_folder(pattern) == folder)
        found |= {file.path: file for file in _tree(spec, hub.repository, commit, folder, deep)}
    chosen: dict[str, None] = {}
    lacking = []
    for pattern in patterns:
        names = [pattern] if pattern in found else []
        if is_glob(pattern):
            names = [name for name in sorted(found) if is_shard(name, tuple(suffixes)) and _matches(name, pattern)]
        chosen |= dict.fromkeys(names)
        lacking += [] if names else [pattern]
    if lacking:
        raise FileNotFoundError(
            f"{spec}: {len(lacking)} of {len(patterns)} paths are not in the dataset at commit {commit[:12]}, "
            f"the first is {lacking[0]}"
        )
    homes = {os.path.dirname(name) for name in chosen}
    beside = [name for name in sorted(found) if os.path.basename(name) in extra and os.path.dirname(name) in homes]
    return [_shard_file(HubPath(hub.repository, commit, name), found[name]) for name in [*chosen, *beside]]


def address(url: str) -> tuple[str, dict[str, str]]:
    """The HTTP URL of an hf:// file, and the headers that the Hub needs (including the token)."""
    from huggingface_hub.utils import build_hf_headers

    hub = parse(url)
    # not hf_hub_url, which may use another endpoint than the one currently set
    revision, path = quote(hub.revision or "main", safe=""), quote(hub.path)
    where = f"{endpoint()}/datasets/{hub.repository}/resolve/{revision}/{path}"
    return where, build_hf_headers(library_name="echotts")


def endpoint() -> str:
    from huggingface_hub import constants

    return constants.ENDPOINT


def _cleaned(hub: HubPath, path: str, suffixes: Sequence[str]) -> str:
    """Turns a folder into a pattern of its shards; leaves files and globs."""
    if path.endswith(tuple(suffixes)) or is_glob(path):
        return path
    return f"{path.rstrip('/')}/*{suffixes[0]}".lstrip("/")


def _fixed_folder(pattern: str) -> str:
    """The longest leading folder without a glob, which has to be listed."""
    folders = pattern.split("/")[:-1]
    fixed = next((number for number, name in enumerate(folders) if is_glob(name)), len(folders))
    return "/".join(folders[:fixed])


def _matches(name: str, pattern: str) -> bool:
    """Matches like a shell: * does not cross folders."""
    parts, wanted = name.split("/"), pattern.split("/")
    return len(parts) == len(wanted) and all(map(fnmatch.fnmatchcase, parts, wanted))


def _tree(spec: str, repository: str, commit: str, folder: str, recursive: bool) -> list[Any]:
    """The files below a folder, as huggingface_hub.hf_api.RepoFile."""

    def ask() -> list[Any]:
        from huggingface_hub import HfApi
        from huggingface_hub.hf_api import RepoFile

        tree = HfApi().list_repo_tree(
            repository, folder or None, recursive=recursive, revision=commit, repo_type="dataset"
        )
        return [item for item in tree if isinstance(item, RepoFile)]

    return _ask(spec, ask)


def _shard_file(hub: HubPath, file: Any) -> ShardFile:
    """Large files have a SHA-256 in the listing, small ones git's blob hash."""
    checksum = f"sha256:{file.lfs.sha256}" if file.lfs is not None else f"git:{file.blob_id}"
    return ShardFile(url=hub.url, bytes=file.size, checksum=checksum)


def _ask(spec: str, call: Callable[[], T]) -> T:
    """Calls the Hub; permanent refusals become FileNotFoundError, other errors Unavailable."""
    from huggingface_hub import errors, get_token

    hub = parse(spec)
    try:
        return call()
    except errors.GatedRepoError:
        raise FileNotFoundError(
            f"{spec}: access to {hub.repository} must be requested on its page at {endpoint()}"
        ) from None
    except errors.RevisionNotFoundError:
        raise FileNotFoundError(f"{spec}: {hub.repository} has no revision {hub.revision}") from None
    except errors.RepositoryNotFoundError:
        remedy = (
            "it does not exist, or your token may not read it"
            if get_token()
            else "it does not exist, or is private and there is no token: run `hf auth login` or set HF_TOKEN"
        )
        raise FileNotFoundError(f"{spec}: no dataset {hub.repository} at {endpoint()}: {remedy}") from None
    except errors.EntryNotFoundError:
        raise FileNotFoundError(f"{spec}: no such folder in {hub.repository}") from None
    except errors.HFValidationError as error:
        raise ValueError(f"{spec}: {str(error).splitlines()[0]}") from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        for_good = 400 <= status < 500 and status not in (408, 429)
        raise Unavailable(f"{spec}: {str(error).strip().splitlines()[0]}", gone=for_good, status=status) from None
    except (OSError, RuntimeError, *_transport_errors()) as error:
        raise Unavailable(f"{spec}: {type(error).__name__}: {error}") from None


def _transport_errors() -> tuple[type[Exception], ...]:
    """The transport errors of the Hub client's HTTP library, whose name differs between versions."""
    from huggingface_hub.errors import HfHubHTTPError

    return tuple(base for base in HfHubHTTPError.__mro__ if base.__module__.startswith("httpx"))[-1:]
