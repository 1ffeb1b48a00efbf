"""How full a filesystem is, by statvfs: an open file frees nothing until it is closed, so sizes are not summed."""

import os
from dataclasses import dataclass, replace

NO_INODE_LIMIT = 2**63  # filesystems that make inodes as they go report none at all


@dataclass(frozen=True)
class Space:
    """Bytes and inodes of one filesystem, as an ordinary process may use them (root's reserve is not free)."""

    used_bytes: int
    free_bytes: int
    used_inodes: int
    free_inodes: int

    @property
    def used_share(self) -> float:
        """0 to 1, of bytes or of inodes, whichever is closer to the end."""
        of_bytes = self.used_bytes / max(self.used_bytes + self.free_bytes, 1)
        of_inodes = self.used_inodes / max(self.used_inodes + self.free_inodes, 1)
        return max(of_bytes, of_inodes)

    def after_freeing(self, freed_bytes: int, freed_inodes: int) -> "Space":
        """What it would be without so many bytes and inodes."""
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
    """The filesystem of a path or an open descriptor. OSError where there is none."""
    found = os.statvfs(place)
    counts_inodes = found.f_files > 0
    return Space(
        used_bytes=(found.f_blocks - found.f_bfree) * found.f_frsize,
        free_bytes=found.f_bavail * found.f_frsize,
        used_inodes=found.f_files - found.f_ffree if counts_inodes else 0,
        free_inodes=found.f_favail if counts_inodes else NO_INODE_LIMIT,
    )
