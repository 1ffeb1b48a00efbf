"""Rejected samples: counted by cause, logged once per cause and shard; too large a share of them stops the run."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

logger = logging.getLogger(__name__)

CAUSES = {
    "not_a_tar": "the file does not start like a tar",
    "truncated_shard": "the tar is truncated or damaged; what precedes that point is used",
    "corrupt_shard": "the checksum of the gzip file is wrong; nothing in it is used",
    "oversized_shard": "the gzip file unpacks to far more than its size, or has far too many members",
    "shard_unavailable": "the shard does not exist, or could not be downloaded before the deadline",
    "hostile_member": "the member is a link or a device, or its name is not a plain relative path",
    "duplicate_key": "a member of this key occurs twice in the shard",
    "member_missing": "the npy or the json of this key is missing",
    "oversized_member": "the member is larger than any sample can be",
    "bad_npy": "not a plain npy file",
    "pickled_npy": "an npy of pickled Python objects; it is never unpickled",
    "wrong_dtype": "not little-endian float16",
    "wrong_shape": "not (frames, channels of the codec), or no frames",
    "non_finite": "NaN or infinity in a latent",
    "bad_json": "not a JSON object of the expected types",
    "bad_text": "the text file is not UTF-8",
    "empty_text": "no text, or only white space",
    "latent_too_long": "more frames than the largest bucket",
    "text_too_long": "more tokens than the largest bucket",
    "crowded_out": "dropped from the full pool before a batch of its length came",
    "unreadable_audio": "the recording cannot be decoded",
    "too_short": "the recording is shorter than the minimum",
    "too_long": "the recording is longer than the maximum",
    "silent": "the recording contains only silence",
}

BAD_SHARD = ("not_a_tar", "truncated_shard", "corrupt_shard", "oversized_shard", "shard_unavailable")


class Rejected(ValueError):
    """A sample or member that cannot be used; `cause` is a key of CAUSES."""

    def __init__(self, cause: str, detail: str) -> None:
        super().__init__(f"{cause}: {detail}")
        self.cause = cause
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault of the file itself, not of one sample."""

    cause: str
    name: str
    detail: str


class TooManyRejected(ValueError):
    """The share of unusable samples or shards exceeds the configured maximum."""


class Rejections:
    """Counts rejected samples by cause. Logs each cause once per shard; raises beyond `max_share`.

    The share refers to samples read and, separately, to shards opened; both need at least MINIMUM_* of them.
    """

    MINIMUM_SAMPLES = 100
    MINIMUM_SHARDS = 20

    def __init__(self, max_share: float = 1.0) -> None:
        self.max_share = max_share
        self.counts: Counter[str] = Counter()
        self.read = 0
        self.shards = 0
        self._bad_shards = 0
        self._logged: set[tuple[str, str]] = set()

    @property
    def share(self) -> float:
        """Rejected samples per sample read."""
        return sum(self.counts.values()) / max(self.read, 1)

    def opened(self, shard: str, faults: Sequence[Fault]) -> None:
        """Counts a shard and the faults of its file."""
        self.shards += 1
        if any(fault.cause in BAD_SHARD for fault in faults):
            self._bad_shards += 1
        for fault in faults:
            self.read += 1
            self.add(fault.cause, shard, fault.name, fault.detail)
        if self.shards >= self.MINIMUM_SHARDS and self._bad_shards > self.max_share * self.shards:
            raise TooManyRejected(
                f"{self._bad_shards} of {self.shards} shards are truncated, not a tar, or could not be downloaded, "
                f"last {shard}: copy them again, or check their source"
            )

    def add(self, cause: str, shard: str, key: str, detail: str) -> None:
        """Counts one rejected sample. Raises TooManyRejected beyond the maximum share."""
        self.counts[cause] += 1
        if (cause, shard) not in self._logged:
            self._logged.add((cause, shard))
            logger.warning(
                "%s: skipped %s, %s (%s); further ones of this kind are only counted", shard, key, cause, detail
            )
        if self.read >= self.MINIMUM_SAMPLES and sum(self.counts.values()) > self.max_share * self.read:
            raise TooManyRejected(
                f"{self.summary()}, more than the maximum share {self.max_share:g}; last {shard}/{key}: {detail}. "
                "Repair the data, change the buckets, or raise max_rejected_share"
            )

    def summary(self) -> str:
        """For example `7 of 120 samples rejected: empty_text 4, non_finite 3`."""
        causes = ", ".join(f"{cause} {count}" for cause, count in self.counts.most_common())
        return f"{sum(self.counts.values())} of {self.read} samples rejected" + (f": {causes}" if causes else "")
