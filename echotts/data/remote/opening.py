"""Opens remote files for reading, whatever the scheme: the Hub, HTTP, and the stores supported by fsspec."""

from typing import Any

from echotts.data.remote import hub
from echotts.data.remote.sources import scheme_of
from echotts.data.remote.web import Body, Unavailable, WebBody
from echotts.gcs import first_line


def open_remote(url: str, timeout_s: float, start: int = 0, end: int | None = None, version: str | None = None) -> Body:
    """The file at `url` from byte `start` up to `end`. Raises Unavailable or one of TRANSPORT_ERRORS."""
    scheme = scheme_of(url)
    if scheme == hub.SCHEME:
        where, headers = hub.address(url)
        return WebBody(where, headers, timeout_s, start, end, version)
    if scheme in ("http", "https"):
        return WebBody(url, {}, timeout_s, start, end, version)
    return FilesystemBody(url, start)


class FilesystemBody:
    """A file in a store supported by fsspec, such as gs:// if gcsfs is installed."""

    def __init__(self, url: str, start: int) -> None:
        fs, path = filesystem(url)
        try:
            details = fs.info(path)
            self._file = fs.open(path, "rb", cache_type="readahead", block_size=8 << 20)
            self._file.seek(start)
        except FileNotFoundError:
            raise Unavailable(f"{url}: no such file", gone=True) from None
        self.start = start
        self.total: int | None = details["size"]
        self.version: str | None = str(details.get("generation") or details.get("etag") or "") or None

    def read(self, limit_bytes: int) -> bytes:
        return self._file.read(limit_bytes)

    def close(self) -> None:
        self._file.close()


def filesystem(url: str) -> Any:
    """(file system, path) of fsspec for a URL. ValueError for an unsupported scheme."""
    import fsspec

    try:
        return fsspec.core.url_to_fs(url)
    except (ValueError, ImportError) as error:
        scheme = scheme_of(url)
        remedy = "pip install gcsfs" if scheme in ("gs", "gcs") else "use hf://, https://, gs:// or a local path"
        raise ValueError(f"{url}: {scheme}:// is not supported ({first_line(error)}): {remedy}") from None
