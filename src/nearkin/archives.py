"""Archives: downloading them, checking them and extracting them safely. Which archive holds which
data set stands in preparing."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import lzma
import os
import shutil
import stat
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO

Progress = Callable[[int, int], None]

MOST_BYTES = 64 * 2**30
MOST_ENTRIES = 2_000_000
_CHUNK = 1 << 20
_TIMEOUT = 30.0
_PADDING = 64 * 2**20
_BROKEN = (
    *(tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError),
    *(NotImplementedError, UnicodeDecodeError),
)
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
    tries: int = 3,
    wait: Callable[[float], None] = time.sleep,
) -> Path:
    """Fetch a file whose checksum is known ("md5:..." or "sha256:..."); a broken download goes on.

    What has arrived stands in `path`.part until it is whole and its checksum is right; only then it
    gets its name. A file of that name with the right checksum is taken as it is. A connection that
    breaks is tried again, after 1, 2, 4 ... seconds (`wait`); it is given up after `tries` times
    without a new byte. `progress(done, total)` is told of bytes; the total is 0 where unknown.

    Raises DownloadError where the file cannot be had, ArchiveError where the checksum is wrong
    (what arrived is removed then), FileExistsError for another file of that name.
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
    failures = 0
    while True:
        before = _size(part)
        try:
            _fetch(url, part, progress)
            break
        except _Interrupted as error:
            failures = 1 if _size(part) > before else failures + 1
            if failures >= tries or not error.again:
                raise DownloadError(
                    f"{url} cannot be downloaded ({error}); try again later, the download then "
                    "goes on where it stopped"
                ) from error
            wait(2.0 ** (failures - 1))
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


def extract(
    archive: str | Path,
    folder: str | Path,
    most: int = MOST_BYTES,
    entries: int = MOST_ENTRIES,
    progress: Progress | None = None,
) -> Path:
    """All files of a tar (also gz, bz2, xz) or zip archive in a new folder, which is whole or not
    there. Raises as `unpack` and `whole_or_not` do."""
    with whole_or_not(folder) as staged:
        unpack(archive, staged, most, entries, progress)
    return Path(folder)


@contextlib.contextmanager
def whole_or_not(folder: str | Path) -> Iterator[Path]:
    """A temporary folder beside `folder`; it gets that name if all within went well, else it goes.

    Raises FileExistsError where `folder` is there already and not empty.
    """
    folder = Path(folder).absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is there already; move it away or give another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    staged = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir()
    try:
        yield staged
        if folder.exists():
            folder.rmdir()
        os.replace(staged, folder)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def is_archive(path: str | Path) -> bool:
    """Whether a file is a tar or zip archive, by its content."""
    return zipfile.is_zipfile(path) or tarfile.is_tarfile(path)


def unpack(
    archive: str | Path,
    folder: Path,
    most: int = MOST_BYTES,
    entries: int = MOST_ENTRIES,
    progress: Progress | None = None,
) -> None:
    """Write the files of a tar or zip archive below an existing folder without links.

    Nothing is written outside of it: names that are absolute or go up are refused, and so are
    links, devices and encrypted files. Rights and owners are not taken over.

    most, entries   bytes and entries that an archive may hold, as it says and as they come out
    progress        told of (bytes read, size) of the archive

    Raises ArchiveError for these, and for a file that is damaged or no archive.
    """
    archive = Path(archive)
    read = _zipped if zipfile.is_zipfile(archive) else _tarred
    declared, written = 0, 0
    try:
        with archive.open("rb") as stream:
            for count, entry in enumerate(read(stream), 1):
                declared += entry.size
                if declared > most or count > entries:
                    raise ArchiveError(_too_much(archive, most, entries))
                target = folder / _inside(entry, archive)
                if entry.open is None:
                    target.mkdir(parents=True, exist_ok=True)
                    continue
                written += _copied(entry, target, most - written)
                if written > most:
                    raise ArchiveError(_too_much(archive, most, entries))
                if progress:
                    progress(stream.tell(), archive.stat().st_size)
    except (*_BROKEN, OSError) as error:
        # Those of the system have a number; without one they are of a decompressor.
        if isinstance(error, OSError) and error.errno is not None:
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


def _tarred(stream: IO[bytes]) -> Iterator[_Entry]:
    with tarfile.open(fileobj=stream, mode="r:*") as archive:
        for member in archive:
            odd = None if member.isreg() or member.isdir() else "a link or a device"

            def opened(member: tarfile.TarInfo = member) -> IO[bytes]:
                """The content of this member."""
                content = archive.extractfile(member)
                assert content is not None
                return content

            size = 0 if member.isdir() else member.size
            yield _Entry(member.name, size, None if member.isdir() else opened, odd)
            # The list of members seen would grow with the archive.
            archive.members = []  # type: ignore[attr-defined]
        # Only at its end does a compressed stream check what came before.
        assert archive.fileobj is not None
        behind = 0
        while chunk := archive.fileobj.read(_CHUNK):
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


def _copied(entry: _Entry, target: Path, most: int) -> int:
    """The number of bytes that came out; those beyond `most` are not written."""
    assert entry.open is not None
    target.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with entry.open() as content, target.open("wb") as file:
        while chunk := content.read(_CHUNK):
            count += len(chunk)
            if count > most:
                return count
            file.write(chunk)
    if count != entry.size:
        raise EOFError(f"{entry.name} has {count} bytes instead of {entry.size}")
    return count


def _too_much(archive: Path, most: int, entries: int) -> str:
    return (
        f"{archive} would fill more than {most / 2**30:.3g} GB or {entries} files; if that is "
        "meant, extract it yourself"
    )
