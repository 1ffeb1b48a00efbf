"""Optional TensorBoard event files in `<run dir>/tensorboard`, with the names and numbers of the metrics lines.

tensorboardX (MIT, without TensorFlow) provides the format. Its own writer passes events to a thread, and its callers
block forever once that thread meets a full disk; here an event is in the file when `write` returns.
"""

import time
from collections.abc import Mapping
from pathlib import Path

FOLDER = "tensorboard"
EVENTS_TAG = "events"


class TensorBoardMissingError(ImportError):
    """The extra for TensorBoard files is not installed."""


class TensorBoard:
    """Writes the numbers of a run from step `start` on; what an earlier run wrote about later steps is discarded."""

    def __init__(self, run_dir: Path, start: int):
        require()
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]  protobuf creates them on import

        folder = run_dir / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        self._file = EventsWriter(str(folder / "events"), f".{start:08d}")
        again = SessionLog(status=SessionLog.START)  # TensorBoard then discards later steps of earlier files
        self._file.write_event(Event(wall_time=time.time(), step=start + 1, session_log=again))
        self._file.flush()

    def write(self, step: int, values: Mapping[str, float | int], words: Mapping[str, str] | None = None) -> None:
        """Writes one line of the metrics; for an event also its name and message, as TensorBoard text."""
        from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
        from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
        from tensorboardX.summary import text

        summary = Summary(value=[Summary.Value(tag=name, simple_value=float(value)) for name, value in values.items()])
        if words:
            summary.MergeFrom(text(EVENTS_TAG, ": ".join(words.values())))
        self._file.write_event(Event(wall_time=time.time(), step=step, summary=summary))
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def require() -> None:
    """Raises TensorBoardMissingError if tensorboardX is not installed."""
    try:
        import tensorboardX  # noqa: F401
    except ImportError:
        raise TensorBoardMissingError(
            "--run.tensorboard needs tensorboardX: pip install 'echotts[tensorboard]', or omit the flag"
        ) from None
