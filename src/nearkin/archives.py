"""Archives: downloading them, checking them and extracting them safely. Which archive holds which
data set stands in preparing."""

from __future__ import annotations

import bz2
import contextlib
import errno
import gzip
import hashlib
import http.client
import lzma
import os
import shutil
import stat
import struct
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any

Progress = Callable[[int, int], None]

MOST_BYTES = 64 * 2**30
MOST_ENTRIES = 2_000_000
_CHUNK = 1 << 20
_TIMEOUT = 30.0
_TRIES = 3
_PADDING = 64 * 2**20
# What a tar says of one entry is a few hundred bytes, and it is read into memory whole.
_MOST_HEADER = 1 << 20
# With what the readers answer broken bytes.
_BROKEN = (
    *(tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error),
    *(EOFError, ValueError, OverflowError, RuntimeError),
)
# The name is in the way, not the disk.
_UNWRITABLE = {
    *(errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ)
}
# Beside what goes wrong on the way: an answer that says "later".
_LATER = (408, 429, 500, 502, 503, 504)


class ArchiveError(ValueError):
    """An archive is damaged, of another kind, or would write where it must not."""


class DownloadError(OSError):
    """A file could not be downloaded; what arrived is kept, so that the next try goes on there."""


# ------------------------------------------------------------------ download


def download(
    url: str,
    path: str | Path,
    checksum: str,
    progress: Progress | None = None,
) -> Path:
    """Fetch a file whose checksum is known ("md5:..." or "sha256:..."); a broken download goes on.

    What has arrived stands in `path`.part until it is whole and its checksum is right; only then it
    gets its name. A file of that name with the right checksum is taken as it is. A connection that
    breaks is tried again, after 1, 2 ... seconds; it is given up after three times without a new
    byte. `progress(done, total)` is told of bytes; the total is 0 where unknown.

    Raises DownloadError where the file cannot be had, ArchiveError where the checksum is wrong
    (what arrived is removed then), FileExistsError for another file of that name,
    KeyboardInterrupt that says where the download goes on.
    """
    path = Path(path)
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"a download starts at http:// or https://, not {url!r}")
    if path.exists():
        if digest(path, checksum) != checksum:
            raise FileExistsError(f"{path} is another file than {url}; move it away")
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    try:
        _fetch_all(url, part, progress)
    except KeyboardInterrupt:
        have = _size(part) // 10**6
        raise KeyboardInterrupt(f"interrupted; the same command goes on at {have} MB") from None
    seen = digest(part, checksum)
    if seen != checksum:
        part.unlink()
        raise ArchiveError(
            f"what arrived from {url} is {seen}, not {checksum}, and was removed; try again"
        )
    os.replace(part, path)
    return path


def digest(path: str | Path, like: str) -> str:
    """The checksum of a file, by the algorithm that `like` ("md5:...") names, in the same form."""
    algorithm = like.partition(":")[0]
    with open(path, "rb") as file:
        return f"{algorithm}:{hashlib.file_digest(file, algorithm).hexdigest()}"


class _Interrupted(Exception):
    def __init__(self, reason: object, again: bool = True):
        text = getattr(reason, "strerror", None) or str(reason)
        super().__init__(" ".join(str(text).split()) or type(reason).__name__)
        self.again = again


def _fetch_all(url: str, part: Path, progress: Progress | None) -> None:
    failures = 0
    while True:
        before = _size(part)
        try:
            return _fetch(url, part, progress)
        except _Interrupted as error:
            failures = 1 if _size(part) > before else failures + 1
            if failures >= _TRIES or not error.again:
                raise DownloadError(
                    f"{url} cannot be downloaded ({error}); try again later, the download then "
                    "goes on where it stopped"
                ) from error
            time.sleep(2.0 ** (failures - 1))


def _fetch(url: str, part: Path, progress: Progress | None) -> None:
    """Append to `part` what is missing."""
    have = _size(part)
    response = _answer(url, have)
    if response is None:  # the server has nothing beyond what is there
        return
    with response:
        if have and not _continues(response, have):
            have = 0
        length = response.headers.get("Content-Length", "")
        total = have + int(length) if length.isdecimal() else 0
        with part.open("ab" if have else "wb") as file:
            for chunk in _chunks(response):
                file.write(chunk)
                have += len(chunk)
                if progress:
                    progress(have, total)
    if have < total:
        raise _Interrupted(f"the connection broke after {have} of {total} bytes")


def _answer(url: str, have: int) -> http.client.HTTPResponse | None:
    """The answer of the server, from byte `have` on if it can; None where there is no more."""
    asked = {"User-Agent": "nearkin", **({"Range": f"bytes={have}-"} if have else {})}
    try:
        return urllib.request.urlopen(urllib.request.Request(url, headers=asked), timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and have:
            # Whole already, or longer than the file on the server: the checksum tells.
            return None
        raise _Interrupted(f"{error.code} {error.reason}", error.code in _LATER) from None
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        raise _Interrupted(getattr(error, "reason", error)) from None


def _continues(response: http.client.HTTPResponse, have: int) -> bool:
    start = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
    return response.status == 206 and start == str(have)


def _chunks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    # Errors of the connection alone: those of the disk must reach the person as they are.
    while True:
        try:
            chunk = response.read(_CHUNK)
        except (http.client.HTTPException, OSError) as error:
            raise _Interrupted(error) from None
        if not chunk:
            return
        yield chunk


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


# ------------------------------------------------------------------ extraction


@contextlib.contextmanager
def whole_or_not(folder: str | Path) -> Iterator[Path]:
    """A temporary folder whose content becomes that of `folder` if all within went well, else it
    goes.

    A folder that is there, perhaps a link or a mount point, stays itself and is filled. Raises
    FileExistsError where it is not empty.
    """
    folder = Path(folder).resolve()
    there = folder.exists()
    if there and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is there already; move it away or give another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    name = f".nearkin.{os.getpid()}"
    staged = folder / name if there else folder.with_name(f"{name}.{folder.name}")
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir()
    try:
        yield staged
        if there:
            _move_up(staged, folder)
        else:
            os.replace(staged, folder)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _move_up(staged: Path, folder: Path) -> None:
    if any(each != staged for each in folder.iterdir()):
        raise FileExistsError(f"{folder} was filled by somebody else; give another folder")
    for each in list(staged.iterdir()):
        os.replace(each, folder / each.name)


def is_archive(path: str | Path) -> bool:
    """Whether a file is a tar (also gz, bz2, xz) or zip archive, by its first bytes."""
    with open(path, "rb") as stream:
        return _reader(stream) is not None


def _reader(stream: IO[bytes]) -> Callable[[IO[bytes]], Iterator[_Entry]] | None:
    """What reads the entries of an archive that begins so."""
    first = stream.read(tarfile.BLOCKSIZE)
    stream.seek(0)
    if first.startswith((b"PK\3\4", b"PK\5\6")):
        return _zipped
    for magic, opened in _COMPRESSED:
        if first.startswith(magic):
            return lambda packed: _tarred(opened(packed))
    try:
        tarfile.TarInfo.frombuf(first, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return None
    return _tarred


_COMPRESSED: tuple[tuple[bytes, Callable[[IO[bytes]], Any]], ...] = (
    (b"\x1f\x8b", lambda packed: gzip.GzipFile(fileobj=packed)),
    (b"BZh", bz2.BZ2File),
    (b"\xfd7zXZ\0", lzma.LZMAFile),
)


def unpack(
    archive: str | Path, folder: Path, most: int = MOST_BYTES, progress: Progress | None = None
) -> None:
    """Write the files of a tar or zip archive below an existing folder without links.

    Nothing is written outside of it: names that are absolute or go up are refused, and so are
    links, devices and encrypted files. Rights and owners are not taken over.

    most        bytes that an archive may hold, as it says and as they come out; never more than
                are free
    progress    told of (bytes read, size) of the archive

    Raises ArchiveError for these, for names that cannot be written, for more than MOST_ENTRIES
    entries, and for a file that is damaged or no archive.
    """
    archive = Path(archive)
    size = archive.stat().st_size
    room = _room(archive, folder, most)
    try:
        with archive.open("rb") as stream:
            read = _reader(stream)
            if read is None:
                raise tarfile.ReadError("its first bytes are those of neither")
            for entry in room.bounded(read(stream)):
                room.left -= _written(entry, archive, folder, room)
                if progress:
                    progress(stream.tell(), size)
            if progress:
                progress(size, size)
    except ArchiveError:
        raise
    except (*_BROKEN, OSError) as error:
        # Those of the system have a number; without one they are of a decompressor, and EINVAL is
        # a place before the file's beginning that a damaged directory names.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        raise ArchiveError(
            f"{archive} is no tar or zip archive, or damaged ({error}); get it anew"
        ) from error


@dataclass(frozen=True)
class _Entry:
    """What an archive says of one entry; `open` is None for a folder, `odd` why it is refused."""

    name: str
    size: int
    open: Callable[[], IO[bytes]] | None
    odd: str | None = None


@dataclass
class _Room:
    """How many bytes may still be written, and what is said where that is too little."""

    archive: Path
    left: int
    full: str

    def bounded(self, entries: Iterator[_Entry]) -> Iterator[_Entry]:
        """The entries, as long as they say that there is room for them."""
        most, declared = self.left, 0
        for count, entry in enumerate(entries, 1):
            declared += entry.size
            if declared > most:
                raise ArchiveError(self.full)
            if count > MOST_ENTRIES:
                raise ArchiveError(
                    f"{self.archive} holds more than {MOST_ENTRIES} files; if that is meant, "
                    "extract it yourself"
                )
            yield entry


def _room(archive: Path, folder: Path, most: int) -> _Room:
    free = shutil.disk_usage(folder).free
    if free < most:
        return _Room(
            archive,
            free,
            f"{archive} needs more than is free on the disk of {folder.parent}, "
            f"{free / 2**30:.3g} GB; make room, or give another folder",
        )
    return _Room(
        archive,
        most,
        f"{archive} would fill more than {most / 2**30:.3g} GB; if that is "
        "meant, extract it yourself",
    )


class _Sparing:
    """A stream that hands out `left` bytes and no more, while there is such a bound."""

    def __init__(self, stream: IO[bytes]):
        self.stream, self.seek, self.tell = stream, stream.seek, stream.tell
        self.left: int | None = _MOST_HEADER

    def read(self, size: int) -> bytes:
        """The next bytes."""
        if self.left is not None:
            self.left -= size
            if self.left < 0:
                raise tarfile.ReadError(f"an entry has a header of more than {_MOST_HEADER} bytes")
        return self.stream.read(size)


def _tarred(stream: IO[bytes]) -> Iterator[_Entry]:
    sparing = _Sparing(stream)
    with tarfile.open(fileobj=sparing, mode="r:") as archive:  # type: ignore[call-overload]
        for member in archive:
            sparing.left = None
            odd = None if member.isreg() or member.isdir() else "a link or a device"

            def opened(member: tarfile.TarInfo = member) -> IO[bytes]:
                """The content of this member."""
                content = archive.extractfile(member)
                assert content is not None
                return content

            size = 0 if member.isdir() else member.size
            yield _Entry(member.name, size, None if member.isdir() else opened, odd)
            # The list of members seen would grow with the archive, and so would what is said of
            # all.
            archive.members, archive.pax_headers = [], {}  # type: ignore[attr-defined]
            sparing.left = _MOST_HEADER
        # Only at its end does a compressed stream check what came before.
        behind = 0
        while chunk := stream.read(_CHUNK):
            behind += len(chunk)
            if behind > _PADDING:
                raise tarfile.ReadError("it goes on behind its end")


def _zipped(stream: IO[bytes]) -> Iterator[_Entry]:
    with zipfile.ZipFile(stream) as archive:
        for info in archive.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            odd = None if kind in (0, stat.S_IFREG, stat.S_IFDIR) else "a link or a device"
            if info.flag_bits & 1:
                odd = "encrypted; extract the archive with its password yourself"

            def opened(info: zipfile.ZipInfo = info) -> IO[bytes]:
                """The content of this member."""
                return archive.open(info)

            yield _Entry(info.filename, info.file_size, None if info.is_dir() else opened, odd)


def _inside(entry: _Entry, archive: Path) -> str:
    """The name of an entry, if it stays inside the folder on any system."""
    if entry.odd is not None:
        raise ArchiveError(f"{archive} holds {entry.name!r}, which is {entry.odd}")
    for path in (PurePosixPath(entry.name), PureWindowsPath(entry.name)):
        if path.anchor or ".." in path.parts or "\0" in entry.name:
            raise ArchiveError(
                f"{archive} holds {entry.name!r}, which leads out of the folder; nothing of it is "
                "used"
            )
    return entry.name


def _written(entry: _Entry, archive: Path, folder: Path, room: _Room) -> int:
    """The number of bytes that came out of an entry."""
    target = folder / _inside(entry, archive)
    try:
        if entry.open is None:
            target.mkdir(parents=True, exist_ok=True)
            return 0
        target.parent.mkdir(parents=True, exist_ok=True)
        file = target.open("wb")
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            raise
        raise ArchiveError(
            f"{archive} holds {_short(entry.name)}, which cannot be written ({error.strerror}); "
            "extract it yourself"
        ) from error
    with file, entry.open() as content:
        count = 0
        while chunk := content.read(_CHUNK):
            count += len(chunk)
            if count > room.left:
                raise ArchiveError(room.full)
            file.write(chunk)
    if count != entry.size:
        raise EOFError(f"{entry.name} has {count} bytes instead of {entry.size}")
    return count


def _short(name: str) -> str:
    return repr(name if len(name) <= 100 else f"{name[:100]}...")
