"""Usage of a file system, by statvfs: deleted files that are still open free nothing, so sizes are not summed."""

import os
from dataclasses import dataclass, replace

NO_INODE_LIMIT = 2**63  # file systems that create inodes on demand report none at all


@dataclass(frozen=True)
class Space:
    """Bytes and inodes of one file system, as available to an ordinary user (without root's reserve)."""

    used_bytes: int
    free_bytes: int
    used_inodes: int
    free_inodes: int

    @property
    def used_share(self) -> float:
        """Used share of bytes or of inodes, whichever is larger; 0 to 1."""
        of_bytes = self.used_bytes / max(self.used_bytes + self.free_bytes, 1)
        of_inodes = self.used_inodes / max(self.used_inodes + self.free_inodes, 1)
        return max(of_bytes, of_inodes)

    def after_freeing(self, freed_bytes: int, freed_inodes: int) -> "Space":
        """The usage after freeing so many bytes and inodes."""
        return replace(
            self,
            used_bytes=self.used_bytes - freed_bytes,
            free_bytes=self.free_bytes + freed_bytes,
            used_inodes=self.used_inodes - freed_inodes,
            free_inodes=self.free_inodes + freed_inodes,
        )

    def __str__(self) -> str:
        return f"{100 * self.used_share:.1f} % used, {self.free_bytes / 2**30:.2f} GiB free"


def measure(place: int | str | os.PathLike[str]) -> Space:
    """Usage of the file system of a path or open descriptor. OSError if there is none."""
    found = os.statvfs(place)
    counts_inodes = found.f_files > 0
    return Space(
        used_bytes=(found.f_blocks - found.f_bfree) * found.f_frsize,
        free_bytes=found.f_bavail * found.f_frsize,
        used_inodes=found.f_files - found.f_ffree if counts_inodes else 0,
        free_inodes=found.f_favail if counts_inodes else NO_INODE_LIMIT,
    )
