"""Reading packed files to their end, or as far as they can be read, and saying why no further."""

from __future__ import annotations

import gzip
import io
import zlib
from pathlib import Path
from typing import Any

from infty.errors import UserError

CUT_SHORT, DAMAGED, BYTES_AFTER = "cut short", "damaged", "bytes after the end of the archive"
LARGEST_WINDOW = 2**31
"""Of a .zst file, in bytes: the most that the format's own library unpacks (`zstd --long=31`)."""


class LimitError(Exception):
    """A file that is whole and still cannot be read here. Says why."""


def open_bytes(path: Path) -> io.BufferedIOBase:
    """A file's bytes, unpacked if its name ends in .gz or .zst.

    What reading raises is explained by `problem_of`.
    """
    name = path.name.lower()
    if name.endswith(".gz"):
        return gzip.open(path, "rb")
    return io.BufferedReader(_Zstandard(path)) if name.endswith(".zst") else open(path, "rb")


def read_bytes(path: Path) -> tuple[bytes, str | None]:
    """All bytes that can be read, and what ended the reading too early, if anything did."""
    parts: list[bytes] = []
    try:
        with open_bytes(path) as f:
            while part := f.read1(1 << 20):
                parts.append(part)
    except Exception as error:
        problem = problem_of(error)
        if problem is None:
            raise
        return b"".join(parts), problem if parts else DAMAGED
    return b"".join(parts), None


def problem_of(error: Exception) -> str | None:
    """What is wrong with the file that reading raised this for; None for a fault of the machine."""
    if isinstance(error, LimitError):
        return str(error)
    if isinstance(error, EOFError):
        return CUT_SHORT
    if isinstance(error, zlib.error):
        return DAMAGED
    if isinstance(error, OSError) and error.errno is None:  # the gzip module's own, and ours
        return (
            BYTES_AFTER
            if str(error).startswith("Not a gzipped file") or str(error) == BYTES_AFTER
            else DAMAGED
        )
    return None


class _Zstandard(io.RawIOBase):
    """A .zst file of any number of frames.

    A file cut short raises EOFError (the library's reader just ends).
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = open(path, "rb")  # noqa: SIM115  (closed in close())
        self._frame: Any = None
        self._left = b""
        self._out = b""
        self._head = b""
        self._frames = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._out:
            data = self._left or self._file.read(1 << 20)
            self._left = b""
            if not data:
                if self._frame is not None:
                    raise EOFError("the last frame is cut short")
                return 0
            self._unpack(data)
        count = min(len(buffer), len(self._out))
        buffer[:count] = self._out[:count]
        self._out = self._out[count:]
        return count

    def _unpack(self, data: bytes) -> None:
        import zstandard

        if self._frame is None:
            self._frame = zstandard.ZstdDecompressor(max_window_size=LARGEST_WINDOW).decompressobj()
            self._head = b""
        self._head = (self._head + data[:18])[:18]
        try:
            self._out = self._frame.decompress(data)
        except zstandard.ZstdError as error:
            raise self._explained(error) from error
        if self._frame.eof:
            self._left = self._frame.unused_data
            self._frame = None
            self._frames += 1

    def _explained(self, error: Exception) -> Exception:
        import zstandard

        if "not enough memory" in str(error).lower():
            return UserError(
                f"{self._path}: unpacking it takes more memory than is available (it was made with a "
                "large window, zstd --long): use fewer --workers, or recompress it without --long"
            )
        if "too much memory for decoding" in str(error):
            return LimitError(
                "a zstd window of more than the 2 GiB that can be unpacked: recompress it with "
                "--long=31 or less"
            )
        try:
            frame = zstandard.get_frame_parameters(self._head)
        except zstandard.ZstdError:
            return OSError(BYTES_AFTER if self._frames else DAMAGED)
        if frame.dict_id:
            return LimitError(
                "packed with a zstd dictionary, which is not available: recompress it without one"
            )
        return OSError(DAMAGED)

    def close(self) -> None:
        self._file.close()
        super().close()
