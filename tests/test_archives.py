"""Archives: downloads that go on, checksums, and extraction that nothing escapes from."""

import gzip
import hashlib
import http.server
import io
import os
import stat
import tarfile
import threading
import tracemalloc
import zipfile
from pathlib import Path
from random import Random

import pytest

from nearkin import archives
from nearkin.archives import (
    ArchiveError,
    DownloadError,
    download,
    is_archive,
    unpack,
    whole_or_not,
)

CONTENT = bytes(range(256)) * 40
MD5 = f"md5:{hashlib.md5(CONTENT).hexdigest()}"


class Server(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT at /good; the other paths go wrong in their own way."""

    asked: list[tuple[str, str | None]]

    def do_GET(self):
        wanted = self.headers.get("Range")
        self.asked.append((self.path, wanted))
        first = int(wanted[6:-1]) if wanted and self.path != "/whole" else 0
        if self.path == "/gone":
            return self.send_error(404)
        if self.path == "/busy" and len(self.asked) < 3:
            return self.send_error(503)
        if first >= len(CONTENT):
            return self.send_error(416)
        self.send_response(206 if first else 200)
        if first:
            self.send_header("Content-Range", f"bytes {first}-{len(CONTENT) - 1}/{len(CONTENT)}")
        self.send_header("Content-Length", str(len(CONTENT) - first))
        self.end_headers()
        # /breaks closes the connection after 3,000 bytes, /never before the first.
        most = {"/breaks": 3000, "/never": 0}.get(self.path, len(CONTENT))
        return self.wfile.write(CONTENT[first : first + most])

    def log_message(self, *_):
        return


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    handler = type("Handler", (Server,), {"asked": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        running.url = f"http://127.0.0.1:{running.server_port}"
        running.asked = handler.asked
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def waits(monkeypatch):
    seen = []
    monkeypatch.setattr(archives.time, "sleep", seen.append)
    return seen


def extract(archive, folder, *more, **named):
    with whole_or_not(folder) as staged:
        unpack(archive, staged, *more, **named)


# --- download


def test_a_file_arrives_whole_with_progress(server, tmp_path):
    seen = []
    path = download(
        f"{server.url}/good", tmp_path / "new" / "a.zip", MD5, lambda *p: seen.append(p)
    )
    assert path.read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert os.listdir(path.parent) == ["a.zip"]


def test_a_file_that_is_there_is_not_fetched_again(server, tmp_path):
    download(f"{server.url}/good", tmp_path / "a", MD5)
    download(f"{server.url}/good", tmp_path / "a", MD5)
    assert len(server.asked) == 1
    (tmp_path / "a").write_bytes(b"mine")
    with pytest.raises(FileExistsError, match="another file"):
        download(f"{server.url}/good", tmp_path / "a", MD5)
    assert (tmp_path / "a").read_bytes() == b"mine"


def test_a_broken_connection_goes_on_where_it_stopped(server, tmp_path, waits):
    path = download(f"{server.url}/breaks", tmp_path / "a", MD5)
    assert path.read_bytes() == CONTENT
    assert [wanted for _, wanted in server.asked] == [
        None,
        *("bytes=3000-", "bytes=6000-", "bytes=9000-"),
    ]
    assert waits == [1, 1, 1]


def test_what_an_earlier_call_left_is_used(server, tmp_path):
    (tmp_path / "a.part").write_bytes(CONTENT[:5000])
    assert download(f"{server.url}/good", tmp_path / "a", MD5).read_bytes() == CONTENT
    assert server.asked == [("/good", "bytes=5000-")]
    (tmp_path / "b.part").write_bytes(CONTENT)
    assert download(f"{server.url}/good", tmp_path / "b", MD5).read_bytes() == CONTENT


def test_a_server_without_ranges_starts_anew(server, tmp_path):
    (tmp_path / "a.part").write_bytes(b"x" * 5000)
    assert download(f"{server.url}/whole", tmp_path / "a", MD5).read_bytes() == CONTENT


def test_a_busy_server_is_asked_again_and_a_missing_file_is_not(server, tmp_path, waits):
    assert download(f"{server.url}/busy", tmp_path / "a", MD5).exists()
    assert waits == [1, 2]
    with pytest.raises(DownloadError, match=r"/gone cannot be downloaded \(404"):
        download(f"{server.url}/gone", tmp_path / "b", MD5)
    assert waits == [1, 2]


def test_no_new_byte_in_three_tries_is_the_end(server, tmp_path, waits):
    with pytest.raises(DownloadError, match=r"connection broke after 0 of 10240 bytes"):
        download(f"{server.url}/never", tmp_path / "a", MD5)
    assert waits == [1, 2]
    assert not (tmp_path / "a").exists()


def test_without_a_network_the_reason_is_told(tmp_path, waits, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(DownloadError, match=r"127.0.0.1:9/a cannot be downloaded .*refused"):
        download("http://127.0.0.1:9/a", tmp_path / "a", MD5)


@pytest.mark.parametrize("algorithm", ["md5", "sha256"])
def test_a_wrong_checksum_is_refused_and_nothing_stays(server, tmp_path, algorithm):
    with pytest.raises(ArchiveError, match=f"is {algorithm}:[0-9a-f]+, not {algorithm}:00"):
        download(f"{server.url}/good", tmp_path / "a", f"{algorithm}:00")
    assert os.listdir(tmp_path) == []


def test_only_the_web_is_downloaded_from(tmp_path):
    with pytest.raises(ValueError, match="starts at http:// or https://, not 'file:///etc/hosts'"):
        download("file:///etc/hosts", tmp_path / "a", MD5)


# --- extraction


def tar(path, *members, mode="w:gz"):
    """members: (name, content) or a TarInfo."""
    with tarfile.open(path, mode) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                archive.addfile(info, io.BytesIO(member[1]))
    return path


def zipped(path, *members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


def special(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_tars_are_extracted(tmp_path, mode):
    folder = tarfile.TarInfo("set/empty")
    folder.type = tarfile.DIRTYPE
    archive = tar(tmp_path / "a", ("set/b/c.jpg", b"one"), folder, ("./d", b"two"), mode=mode)
    seen = []
    assert is_archive(archive)
    extract(archive, tmp_path / "out", progress=lambda *p: seen.append(p))
    assert (tmp_path / "out/set/b/c.jpg").read_bytes() == b"one"
    assert (tmp_path / "out/d").read_bytes() == b"two"
    assert (tmp_path / "out/set/empty").is_dir()
    assert seen[-1] == (archive.stat().st_size,) * 2
    assert sorted(os.listdir(tmp_path)) == ["a", "out"]


def test_zips_are_extracted_into_an_empty_folder(tmp_path):
    archive = zipped(tmp_path / "a.zip", ("set/", b""), ("set/b.jpg", b"one"))
    (tmp_path / "out").mkdir()
    extract(archive, tmp_path / "out")
    assert (tmp_path / "out/set/b.jpg").read_bytes() == b"one"


def test_rights_are_not_taken_over(tmp_path):
    info = tarfile.TarInfo("run")
    info.mode = 0o7777
    extract(tar(tmp_path / "a", info), tmp_path / "out")
    assert not (tmp_path / "out/run").stat().st_mode & (stat.S_ISUID | stat.S_IXUSR)


NAMES = [
    "/etc/x",
    "../x",
    "a/../../x",
    "..\\x",
    "C:\\x",
    "C:x",
    "\\\\host\\share\\x",
    "a/..\\..\\x",
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("make", [tar, zipped])
def test_names_that_lead_out_are_refused(tmp_path, name, make):
    archive = make(tmp_path / "a", ("good.txt", b"1"), (name, b"2"))
    with pytest.raises(ArchiveError, match="which leads out of the folder"):
        extract(archive, tmp_path / "deep" / "out")
    assert os.listdir(tmp_path / "deep") == []
    assert sorted(os.listdir(tmp_path)) == ["a", "deep"]


@pytest.mark.parametrize(
    "kind",
    [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE],
)
def test_links_and_devices_in_tars_are_refused(tmp_path, kind):
    archive = tar(tmp_path / "a", ("x", b"1"), special("y", kind, "x"), ("y/z", b"2"))
    with pytest.raises(ArchiveError, match="'y', which is a link or a device"):
        extract(archive, tmp_path / "out")
    assert os.listdir(tmp_path) == ["a"]


def test_links_in_zips_are_refused(tmp_path):
    info = zipfile.ZipInfo("y")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with pytest.raises(ArchiveError, match="'y', which is a link or a device"):
        extract(zipped(tmp_path / "a", (info, "/etc")), tmp_path / "out")


def test_encrypted_zips_are_told(tmp_path):
    path = zipped(tmp_path / "a.zip", ("x", b"1"))
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1  # the flags of the entry in the directory
    path.write_bytes(content)
    with pytest.raises(ArchiveError, match="which is encrypted; extract the archive with its pass"):
        extract(path, tmp_path / "out")


@pytest.mark.parametrize("make", [tar, zipped])
def test_bombs_are_refused_by_what_they_declare(tmp_path, make, monkeypatch):
    archive = make(tmp_path / "a", *((f"{i}", bytes(10_000)) for i in range(5)))
    assert archive.stat().st_size < 2000
    with pytest.raises(ArchiveError, match="would fill more than"):
        extract(archive, tmp_path / "out", most=49_999)
    monkeypatch.setattr(archives, "MOST_ENTRIES", 4)
    with pytest.raises(ArchiveError, match="holds more than 4 files"):
        extract(archive, tmp_path / "out")
    assert os.listdir(tmp_path) == ["a"]
    monkeypatch.setattr(archives, "MOST_ENTRIES", 5)
    extract(archive, tmp_path / "out", most=50_000)


@pytest.mark.parametrize("make", [tar, zipped])
def test_what_the_disk_cannot_hold_is_refused(tmp_path, make, monkeypatch):
    archive = make(tmp_path / "a", ("x", bytes(10_000)))
    usage = archives.shutil.disk_usage(tmp_path)._replace(free=9_999)
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(ArchiveError, match=r"needs more than is free on the disk of .* make room"):
        extract(archive, tmp_path / "out")
    assert os.listdir(tmp_path) == ["a"]


def block(name, kind, size):
    """A header of a tar with a size of its own."""
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


BIG = 64 << 20
HEADERS = [tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE]


@pytest.mark.parametrize("kind", HEADERS)
@pytest.mark.parametrize("first", [True, False])
def test_headers_do_not_fill_the_memory(tmp_path, kind, first):
    path = tmp_path / "a"
    with gzip.open(path, "wb", compresslevel=1) as file:
        if not first:
            file.write(block("x", tarfile.REGTYPE, 0))
        file.write(block("y", kind, BIG))
        for _ in range(BIG >> 20):
            file.write(b"a" * (1 << 20))
        file.write(block("z", tarfile.REGTYPE, 0) + bytes(1024))
    assert path.stat().st_size < BIG // 100
    tracemalloc.start()
    try:
        assert is_archive(path)
        with pytest.raises(ArchiveError, match="a header of more than 1048576 bytes"):
            extract(path, tmp_path / "out")
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
    assert os.listdir(tmp_path) == ["a"]


def test_a_chain_of_headers_is_refused(tmp_path):
    long = block("x", tarfile.GNUTYPE_LONGNAME, 1) + b"y".ljust(512, b"\0")
    (tmp_path / "a").write_bytes(long * 900 + block("z", tarfile.REGTYPE, 0) + bytes(1024))
    with pytest.raises(ArchiveError, match="damaged"):
        extract(tmp_path / "a", tmp_path / "out")


def test_long_names_within_reason_are_kept(tmp_path):
    name = "/".join(["deep" * 20] * 5)
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        with tarfile.open(tmp_path / "a", "w", format=form) as archive:
            archive.addfile(tarfile.TarInfo(name))
        extract(tmp_path / "a", tmp_path / str(form))
        assert (tmp_path / str(form) / name).is_file()


@pytest.mark.parametrize(
    ("members", "named"),
    [
        ((("a", b"1"), ("a/b", b"2")), "'a/b'"),
        ((("a/b", b"1"), ("a", b"2")), "'a'"),
        ((("x" * 300, b"1"),), "'xxxx[x]*[.]{3}'"),
        (((".", b"1"),), "'[.]'"),
    ],
)
@pytest.mark.parametrize("make", [tar, zipped])
def test_names_that_cannot_be_written_are_told(tmp_path, make, members, named):
    archive = make(tmp_path / "archive", *members)
    with pytest.raises(ArchiveError, match=rf"holds {named}, which cannot be written \("):
        extract(archive, tmp_path / "out")
    assert os.listdir(tmp_path) == ["archive"]


def test_bombs_are_refused_by_what_comes_out(tmp_path, monkeypatch):
    archive = zipped(tmp_path / "a.zip", ("x", bytes(10_000)))
    entry = archives._Entry("x", 5, lambda: io.BytesIO(bytes(10_000)))
    assert is_archive(archive)
    monkeypatch.setattr(archives, "_zipped", lambda stream: iter([entry]))
    with pytest.raises(ArchiveError, match="would fill more than"):
        extract(archive, tmp_path / "out", most=9_999)
    with pytest.raises(ArchiveError, match="x has 10000 bytes instead of 5"):
        extract(archive, tmp_path / "out")
    assert os.listdir(tmp_path) == ["a.zip"]


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz", "zip"])
def test_whatever_is_cut_off_or_flipped_is_said_or_harmless(tmp_path, mode):
    random = Random(0)
    members = [(f"deep/{i}.bin", random.randbytes(300) + bytes(300)) for i in range(4)]
    path = tmp_path / "a"
    zipped(path, *members) if mode == "zip" else tar(path, *members, mode=mode)
    content = path.read_bytes()
    said = 0
    for turn in range(300):
        at = random.randrange(len(content))
        broken = content[:at] if turn % 2 else content[:at] + b"#" + content[at + 1 :]
        path.write_bytes(broken)
        is_archive(path)
        try:
            extract(path, tmp_path / str(turn))
        except ArchiveError:
            said += 1
            assert not (tmp_path / str(turn)).exists()
    assert said > 60


@pytest.mark.parametrize("make", [tar, zipped])
def test_damaged_archives_leave_nothing(tmp_path, make):
    archive = make(tmp_path / "a", *((f"{i}.bin", os.urandom(3000)) for i in range(4)))
    content = archive.read_bytes()
    for broken in (content[: len(content) // 2], content[:700] + b"#" * 9 + content[709:], b"text"):
        archive.write_bytes(broken)
        with pytest.raises(ArchiveError, match="no tar or zip archive, or damaged"):
            extract(archive, tmp_path / "out")
        assert os.listdir(tmp_path) == ["a"]


def test_a_folder_with_something_in_it_stays(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("1")
    with pytest.raises(FileExistsError, match="is there already"):
        extract(tar(tmp_path / "a", ("x", b"1")), tmp_path / "out")
    assert os.listdir(tmp_path / "out") == ["mine"]


def test_an_error_within_leaves_no_folder(tmp_path):
    with pytest.raises(ZeroDivisionError), whole_or_not(tmp_path / "out") as staged:
        (staged / "x").write_text(str(1 / 0))
    assert os.listdir(tmp_path) == []


def test_an_empty_folder_behind_a_link_is_filled(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    extract(tar(tmp_path / "a", ("b/x", b"1")), tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "disk" / "b" / "x").read_bytes() == b"1"
    assert os.listdir(tmp_path / "disk") == ["b"]
    (tmp_path / "other").symlink_to(tmp_path / "new")
    extract(tmp_path / "a", tmp_path / "other")
    assert (tmp_path / "new" / "b" / "x").exists()


def test_the_folder_under_the_shell_stays_itself(tmp_path, monkeypatch):
    archive = tar(tmp_path / "a", ("b/x", b"1"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    before = os.stat(".").st_ino
    extract(archive, ".")
    assert os.listdir(".") == ["b"]
    assert os.stat(tmp_path / "here").st_ino == before


def test_an_error_within_leaves_an_empty_folder_empty(tmp_path):
    with pytest.raises(ZeroDivisionError), whole_or_not(tmp_path) as staged:
        (staged / "x").write_text(str(1 / 0))
    assert os.listdir(tmp_path) == []


def test_what_came_into_the_folder_meanwhile_stays(tmp_path):
    with pytest.raises(FileExistsError, match="filled by somebody else"), whole_or_not(tmp_path):
        (tmp_path / "mine").write_text("1")
    assert os.listdir(tmp_path) == ["mine"]


def test_ctrl_c_says_where_the_download_goes_on(tmp_path, server):
    def stop(done, total):
        raise KeyboardInterrupt

    with Path(tmp_path / "a.part").open("wb") as part:
        part.truncate(3_000_000)
    with pytest.raises(KeyboardInterrupt, match="interrupted; the same command goes on at 0 MB"):
        download(f"{server.url}/whole", tmp_path / "a", MD5, stop)
    assert (tmp_path / "a.part").exists()
