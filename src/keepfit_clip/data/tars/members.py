"""The members of a tar, read once from its start to its end, whatever it holds.

Nothing is allocated because a tar says so: members and headers that are larger than what samples have are passed over
or end the tar, and a compressed tar may not unpack to very much more than it is.
"""

import bz2
import gzip
import io
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from keepfit_clip.data.description import is_unicode
from keepfit_clip.data.tars.locations import is_local, open_location
from keepfit_clip.errors import ShardError
from keepfit_clip.images.reading import MAX_IMAGE_BYTES, FileSlice, in_mebibytes

__all__ = ["IMAGE_MEMBERS", "MAX_TEXT_BYTES", "TarMember", "read_tar"]

IMAGE_MEMBERS = ("jpg", "jpeg", "png", "webp", "tif", "tiff", "bmp")
_MEMBERS = (*IMAGE_MEMBERS, "json", "txt", "cls")
MAX_TEXT_BYTES = 4 << 20  # of a .json, .txt or .cls of a sample
_END_MARK = 1024  # bytes of zeros at the end of a tar
_LARGEST_MEMBER = 1 << 30  # bytes of any member; tarfile would count through what a damaged one claims
_LARGEST_HEADER = 1 << 16  # bytes of a long name or of a PAX header
_MOST_HEADERS = 8  # of these before one member
_MOST_GLOBAL_HEADERS = 64  # in a tar, which keeps what they say
_LARGEST_RATIO = 250  # of what a compressed tar holds to what it is
_ALWAYS_UNPACKED = 1 << 28  # bytes that may come of any compressed tar


class TarMember(NamedTuple):
    """One member that belongs to a sample.

    Args:
        key: name of the sample.
        suffix: of the member, in small letters, without its dot.
        content: its bytes, or where they stand; None where it cannot be used.
        problem: why it cannot.
    """

    key: str
    suffix: str
    content: bytes | FileSlice | None
    problem: str | None = None


def read_tar(shard: str, on_error: Callable[[ShardError], None], image_slices: bool) -> Iterator[TarMember]:
    """Images, `.json`, `.txt` and `.cls` of a tar, up to where it is damaged.

    Args:
        shard: location of a tar, plain or compressed by gzip, bzip2 or xz.
        on_error: called with what is wrong with the tar as a whole.
        image_slices: give images as parts of the tar where it is a plain local file, instead of their bytes.
    """
    try:
        with open_location(shard) as stream:
            watched = _Watched(stream)
            slices = Path(shard) if image_slices and not watched.compressed and is_local(shard) else None
            with tarfile.open(fileobj=watched, mode="r|", tarinfo=_Header) as tar:
                tar.headers = tar.global_headers = 0
                for entry in tar:
                    if not 0 <= entry.size <= _LARGEST_MEMBER:
                        raise tarfile.ReadError(f"a member of {entry.size} bytes")
                    member = _member(tar, entry, slices)
                    if member is not None:
                        yield member
                    tar.members, tar.headers = [], 0  # else it keeps all it has seen
            if not watched.ended():  # cut between two members, where tarfile sees nothing wrong
                on_error(ShardError(f"{shard}: the tar is cut off or damaged (it has no end mark)"))
    except (OSError, EOFError, tarfile.TarError, ValueError, RecursionError, zlib.error, lzma.LZMAError) as error:
        gone = isinstance(error, FileNotFoundError)
        cause = error.args[0] if error.args else type(error).__name__
        what = "no such shard" if gone else f"the tar is cut off or damaged, or cannot be read ({cause})"
        on_error(ShardError(f"{shard}: {what}"))


def _member(tar: tarfile.TarFile, entry: tarfile.TarInfo, slices: Path | None) -> TarMember | None:
    """What a sample gets of an entry; None for what samples do not have."""
    stem, _, suffix = entry.name.rpartition("/")[2].partition(".")
    suffix = suffix.lower()
    if not (entry.isreg() and stem and suffix in _MEMBERS):
        return None
    key = entry.name[: len(entry.name) - len(suffix) - 1]
    if not is_unicode(key):  # bytes that are no UTF-8 come as halves of characters
        return TarMember(key, suffix, None, "its name is not UTF-8")
    limit = MAX_IMAGE_BYTES if suffix in IMAGE_MEMBERS else MAX_TEXT_BYTES
    if entry.size > limit:
        return TarMember(key, suffix, None, f"its .{suffix} has more than {in_mebibytes(limit)}")
    if slices is not None and suffix in IMAGE_MEMBERS:
        return TarMember(key, suffix, FileSlice(slices, entry.offset_data, entry.size))
    return TarMember(key, suffix, tar.extractfile(entry).read())


class _Header(tarfile.TarInfo):
    """A header of a tar: names and PAX headers, which tarfile reads whole, have limits; sparse files are refused."""

    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:  # the hook that tarfile has for subclasses
        if self.type == tarfile.GNUTYPE_SPARSE:
            self._refuse_sparse()
        if self.type in _EXTENSIONS:
            self._check_extension(tar)
        return super()._proc_member(tar)

    def _check_extension(self, tar: tarfile.TarFile) -> None:
        if not 0 <= self.size <= _LARGEST_HEADER:
            raise tarfile.ReadError(f"a header of {self.size} bytes")
        tar.headers = getattr(tar, "headers", 0) + 1
        tar.global_headers = getattr(tar, "global_headers", 0) + (self.type == tarfile.XGLTYPE)
        if tar.headers > _MOST_HEADERS or tar.global_headers > _MOST_GLOBAL_HEADERS:
            raise tarfile.ReadError("too many headers")

    def _refuse_sparse(self, *_args) -> None:
        raise tarfile.ReadError("a sparse member, which no sample has")

    _proc_gnusparse_00 = _proc_gnusparse_01 = _proc_gnusparse_10 = _refuse_sparse


_EXTENSIONS = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.XGLTYPE,
)


class _Counted:
    """A stream that knows how much was read of it."""

    def __init__(self, stream: BinaryIO):
        self._stream = stream
        self.total = 0

    def read(self, size: int = -1) -> bytes:
        block = self._stream.read(size)
        self.total += len(block)
        return block


class _Watched:
    """The tar in a stream, unpacked where it is compressed, and what can be said of it once it was read.

    Unlike tarfile's own unpacking it raises at an early end.
    """

    def __init__(self, stream: BinaryIO):
        stream = stream if hasattr(stream, "peek") else io.BufferedReader(stream)
        head = stream.peek(6)
        self._packed = _Counted(stream)
        self._plain = stream
        if head[:2] == b"\x1f\x8b":
            self._plain = gzip.GzipFile(fileobj=self._packed)
        elif head[:3] == b"BZh":
            self._plain = bz2.BZ2File(self._packed)
        elif head[:6] == b"\xfd7zXZ\x00":
            self._plain = lzma.LZMAFile(self._packed)  # noqa: SIM115 - the stream below is closed
        self.compressed = self._plain is not stream
        self._total = 0
        self._tail = b""

    def read(self, size: int) -> bytes:
        block = self._plain.read(size)
        if block:
            self._tail = block[-_END_MARK:] if len(block) >= _END_MARK else (self._tail + block)[-_END_MARK:]
            self._total += len(block)
            if self.compressed and self._total > max(_ALWAYS_UNPACKED, _LARGEST_RATIO * self._packed.total):
                raise tarfile.ReadError(f"it unpacks to more than {_LARGEST_RATIO} times its size")
        return block

    def ended(self) -> bool:
        """Reads what is left and tells whether it ended in the two empty blocks that close a tar."""
        while self.read(1 << 16):
            pass
        return len(self._tail) == _END_MARK and not any(self._tail)
