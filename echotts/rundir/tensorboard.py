"""TensorBoard's event files in `<run dir>/tensorboard`, beside the metrics lines if wanted: the same names and numbers.

tensorboardX (MIT, needs no TensorFlow) knows the format. Its own writer hands events to a thread, and its callers wait
for ever once that thread has met a full disk; here an event is in the file when `write` returns.
"""

import time
from collections.abc import Mapping
from pathlib import Path

FOLDER = "tensorboard"
EVENTS_TAG = "events"


class TensorBoardMissingError(ImportError):
    """The extra that writes TensorBoard's files is not installed."""


class TensorBoard:
    """Writes the numbers of a run that goes on after step `start`: what an earlier try wrote of later steps is void."""

    def __init__(self, run_dir: Path, start: int):
        require()
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]  protobuf makes them as it loads

        folder = run_dir / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        self._file = EventsWriter(str(folder / "events"), f".{start:08d}")
        again = SessionLog(status=SessionLog.START)  # TensorBoard then forgets steps from this one on
        self._file.write_event(Event(wall_time=time.time(), step=start + 1, session_log=again))
        self._file.flush()

    def write(self, step: int, values: Mapping[str, float | int], words: Mapping[str, str] | None = None) -> None:
        """One line of the metrics; of an event also its name and message, as TensorBoard's text."""
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
    """TensorBoardMissingError, in one line, where tensorboardX is not installed."""
    try:
        import tensorboardX  # noqa: F401
    except ImportError:
        raise TensorBoardMissingError(
            "--run.tensorboard needs tensorboardX: pip install 'echotts[tensorboard]', or leave the flag out"
        ) from None
