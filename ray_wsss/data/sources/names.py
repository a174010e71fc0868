"""Names of a table's images: kept on disk, with a digest of each in memory that tells equal ones."""

import hashlib
import json
from collections.abc import Iterator
from tempfile import TemporaryFile
from weakref import finalize

import numpy as np
from numpy.typing import NDArray

_DIGEST_BYTES = 16
"""By 8 bytes, two of 100 million names would be taken for one in one of 4,000 tables; by 16, never."""
_PARTS = 16
"""Parts of the names that are sorted one after the other, since sorting takes some 50 bytes a name."""


class Names:
    """Names in the order in which they were added; equal ones stay apart. One takes 16 bytes of memory."""

    def __init__(self) -> None:
        self._file = TemporaryFile("w+", prefix="ray_wsss_", encoding="ascii")  # noqa: SIM115
        finalize(self, self._file.close)
        self._digests = bytearray()

    def __len__(self) -> int:
        return len(self._digests) // _DIGEST_BYTES

    def add(self, name: str) -> None:
        """Add a name."""
        # JSON keeps a name with line breaks in one line.
        self._file.write(json.dumps(name) + "\n")
        encoded = name.encode("utf-8", "surrogatepass")
        self._digests += hashlib.blake2b(encoded, digest_size=_DIGEST_BYTES).digest()

    def __iter__(self) -> Iterator[str]:
        self._file.seek(0)
        return (json.loads(line) for line in self._file)

    def first_equal(self) -> NDArray[np.unsignedinteger]:
        """(N,) index of the first name that equals each name; its own for a name that is new."""
        halves = np.frombuffer(self._digests, np.uint64).reshape(-1, 2)
        first = np.arange(len(halves), dtype=np.min_scalar_type(len(halves)))
        part_of = (halves[:, 0] % _PARTS).astype(np.uint8)
        for part in range(_PARTS):
            lines = np.flatnonzero(part_of == part)
            # Stable: of equal names, the first stays first.
            lines = lines[np.lexsort(halves[lines].T)]
            found = halves[lines]
            starts = np.flatnonzero(np.r_[True, (found[1:] != found[:-1]).any(1)][: len(lines)])
            first[lines] = np.repeat(lines[starts], np.diff(starts, append=len(lines)))
        return first
