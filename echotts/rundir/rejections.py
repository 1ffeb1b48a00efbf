"""What was skipped, and why: counted by cause, logged once per cause and shard, a stop beyond a share."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

logger = logging.getLogger(__name__)

CAUSES = {
    "not_a_tar": "the file does not begin like a tar",
    "truncated_shard": "the tar is cut or broken; what lies before that point is used",
    "corrupt_shard": "the gzip file was altered: its checksum is wrong, and nothing of it is used",
    "oversized_shard": "the gzip file unpacks to far more than its size, or holds far too many members",
    "shard_unavailable": "the shard is gone, or could not be fetched before the deadline",
    "hostile_member": "a link, a device or a name that is not a plain relative path",
    "duplicate_key": "a member of this key occurs twice in the shard",
    "member_missing": "no npy or no json for this key",
    "oversized_member": "a member larger than any sample is",
    "bad_npy": "not a plain npy file",
    "pickled_npy": "an npy of Python objects; it is never unpickled",
    "wrong_dtype": "not little-endian float16",
    "wrong_shape": "not (frames, channels of the codec), or no frames",
    "non_finite": "NaN or infinity in a latent",
    "bad_json": "not a JSON object of the expected types",
    "bad_text": "the text file is not UTF-8",
    "empty_text": "no text, or only white space",
    "latent_too_long": "more frames than the largest bucket",
    "text_too_long": "more tokens than fit the largest bucket",
    "crowded_out": "no room to keep it until a batch of its length came",
    "unreadable_audio": "the recording cannot be decoded",
    "too_short": "the recording is shorter than asked",
    "too_long": "the recording is longer than asked",
    "silent": "the recording holds only silence",
}

BAD_SHARD = ("not_a_tar", "truncated_shard", "corrupt_shard", "oversized_shard", "shard_unavailable")


class Rejected(ValueError):
    """One sample or member that cannot be used; `cause` is a word of CAUSES."""

    def __init__(self, cause: str, detail: str) -> None:
        super().__init__(f"{cause}: {detail}")
        self.cause = cause
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Fault:
    """Something wrong with the file itself rather than with one sample."""

    cause: str
    name: str
    detail: str


class TooManyRejected(ValueError):
    """The share of unusable samples or shards passed what the configuration allows."""


class Rejections:
    """Counts of what was skipped, by cause. Logs each cause once per shard; stops past `max_share`.

    The share is of samples read and, apart, of shards opened; neither is judged before `MINIMUM_*` were seen.
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
        """Counts a shard and the faults of its file as such."""
        self.shards += 1
        if any(fault.cause in BAD_SHARD for fault in faults):
            self._bad_shards += 1
        for fault in faults:
            self.read += 1
            self.add(fault.cause, shard, fault.name, fault.detail)
        if self.shards >= self.MINIMUM_SHARDS and self._bad_shards > self.max_share * self.shards:
            raise TooManyRejected(
                f"{self._bad_shards} of {self.shards} shards are cut, no tar, or could not be fetched, "
                f"last {shard}: copy them again, or look at where they come from"
            )

    def add(self, cause: str, shard: str, key: str, detail: str) -> None:
        """Counts one skipped sample. Raises TooManyRejected past the share."""
        self.counts[cause] += 1
        if (cause, shard) not in self._logged:
            self._logged.add((cause, shard))
            logger.warning("%s: %s skipped, %s (%s); the next of this kind are only counted", shard, key, cause, detail)
        if self.read >= self.MINIMUM_SAMPLES and sum(self.counts.values()) > self.max_share * self.read:
            raise TooManyRejected(
                f"{self.summary()}, more than the allowed share {self.max_share:g}; last {shard}/{key}: {detail}. "
                "Repair the data, change the buckets, or raise max_rejected_share"
            )

    def summary(self) -> str:
        """For instance `7 of 120 samples rejected: empty_text 4, non_finite 3`."""
        causes = ", ".join(f"{cause} {count}" for cause, count in self.counts.most_common())
        return f"{sum(self.counts.values())} of {self.read} samples rejected" + (f": {causes}" if causes else "")
