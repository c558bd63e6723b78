"""`nearkin data prepare`: the archive of a named data set, downloaded where it can be had,
extracted safely and read once; how that is done stands in archives."""

from __future__ import annotations

import inspect
import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from nearkin.archives import DownloadError, download, is_archive, unpack, whole_or_not
from nearkin.cache import cache_folder
from nearkin.catalog import KINDS, did_you_mean, scan
from nearkin.data.base import Splits
from nearkin.data.cars import cars
from nearkin.data.cub import cub
from nearkin.data.inshop import inshop
from nearkin.data.official import OtherCounts, set_folder
from nearkin.data.omniglot import omniglot
from nearkin.data.sop import sop

# What is done, and how many bytes of how many (0: unknown) are done.
Progress = Callable[[str, int, int], None]

_LISTS = (".mat", ".txt", ".csv")
_OMNIGLOT = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python"


@dataclass(frozen=True)
class Remote:
    """A file that can be downloaded: its address, "md5:..." and size in millions of bytes."""

    url: str
    checksum: str
    megabytes: int


@dataclass(frozen=True)
class Source:
    """A set and where its archives are: `remotes`, or `where` in words for a person.

    files       the names under which its files are published
    gigabytes   what an archive of it fills at most; three times as much is taken for another file
    """

    read: Callable[..., Splits]
    files: tuple[str, ...]
    gigabytes: float
    remotes: tuple[Remote, ...] = ()
    where: str = ""


SOURCES = {
    "cub": Source(
        cub,
        ("CUB_200_2011.tgz",),
        1.3,
        (
            Remote(
                "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz",
                "md5:97eceeb196236b17998738112f37df78",
                1151,
            ),
        ),
    ),
    "cars": Source(
        cars,
        ("car_ims.tgz", "cars_annos.mat"),
        2.1,
        where="Its own site is gone. Get car_ims.tgz (all 16,185 images) and cars_annos.mat from "
        "somebody who has them, or a mirror of cars_train/ and cars_test/ that holds "
        "cars_train_annos.mat, cars_test_annos_withlabels.mat and cars_meta.mat",
    ),
    "sop": Source(
        sop,
        ("Stanford_Online_Products.zip",),
        3.2,
        where="Get Stanford_Online_Products.zip (2.9 GB) with a browser, which has to confirm, "
        "from https://drive.google.com/file/d/1TclrpQOF_ullUP99wk_gjGN8pKvtErG8/view (the link "
        "of https://cvgl.stanford.edu/projects/lifted_struct)",
    ),
    "inshop": Source(
        inshop,
        ("img.zip", "list_eval_partition.txt"),
        3.0,
        where="Get Img/img.zip (256 x 256, not img_highres) and Eval/list_eval_partition.txt of "
        "the In-shop Clothes Retrieval Benchmark by hand, from "
        "https://mmlab.ie.cuhk.edu.hk/projects/DeepFashion/InShopRetrieval.html; extract what has "
        "a password yourself",
    ),
    "omniglot": Source(
        omniglot,
        ("images_background.zip", "images_evaluation.zip"),
        0.2,
        (
            Remote(f"{_OMNIGLOT}/images_background.zip", "md5:68d2efa1b9178cc56df9314c21c6e718", 9),
            Remote(f"{_OMNIGLOT}/images_evaluation.zip", "md5:6b91aef0f799c5bb55b94e3f2daec811", 6),
        ),
    ),
}


def prepare(
    name: str,
    *,
    archives: Sequence[str | Path] = (),
    to: str | Path | None = None,
    ask: Callable[[str], bool],
    say: Callable[[str], None] = lambda text: None,
    progress: Progress = lambda what, done, total: None,
) -> dict[str, Any]:
    """Put a data set where it is read from, and read it once.

    archives   files at hand instead of a download: archives are extracted, lists (.mat, .txt,
               .csv) are copied, all into one folder
    to         the folder of the set; default: data/NAME in the cache folder
    ask        whether to download, given what from where as text
    say        told of what is going on
    progress   told of the bytes that are downloaded or extracted

    What is there already is read and left as it is. Returns {"name", "path", "prepared", "splits":
    {split: {"rows", "classes"}}}. Raises ValueError or OSError where the set cannot be had or is
    not what it should be, in its numbers of images and classes too; nothing is left at `path` then.
    """
    source = _source(name)
    folder = set_folder(name, to).absolute()
    files = [Path(file) for file in archives]
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"there is no file {file}; give an archive of {name}")
    if folder.exists() and any(folder.iterdir()):
        found = _there(source, name, folder)
        if files:
            held = ", ".join(map(str, files))
            raise FileExistsError(f"{folder} holds {name} already; move it away to use {held}")
        return found
    loaded = not files
    if loaded:
        files = _download(source, name, folder, ask, say, progress)
    with whole_or_not(folder) as staged:
        for file in files:
            say(f"extracting {file.name}")
            _place(file, staged, source, progress)
        splits = _read_anew(source, name, staged, files)
    for file in files if loaded else ():
        file.unlink()
    return _said(name, folder, True, splits)


def _read(source: Source, folder: Path) -> Splits:
    """The set; other counts than the published ones are an error here."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", OtherCounts)
        try:
            return source.read(folder)
        except OtherCounts as other:
            raise ValueError(str(other)) from None


def _read_anew(source: Source, name: str, staged: Path, files: Sequence[Path]) -> Splits:
    try:
        return _read(source, staged)
    except (ValueError, OSError) as error:
        # Without its advice, which is for a folder that a person filled.
        what = str(error).replace(str(staged), "what was extracted").partition("; ")[0]
        held = ", ".join(map(str, files))
        instead = "get the file anew"
        if len(source.files) > 1:
            instead = f"give all files in one command: {_command(name, source)}"
        raise ValueError(f"{held} cannot be read as {name}: {what}; {instead}") from None


def _command(name: str, source: Source) -> str:
    return f"nearkin data prepare {name}" + "".join(f" --archive {file}" for file in source.files)


def _source(name: str) -> Source:
    if name in SOURCES:
        return SOURCES[name]
    known = scan(KINDS["data"])
    if name not in known:
        raise ValueError(f"there is no data set {name!r}; {did_you_mean(name, SOURCES)}")
    own = "path" in inspect.signature(known[name]).parameters
    what = "reads files of your own" if own else "is made on this machine"
    raise ValueError(
        f"{name} needs no preparing: it {what}; what can be prepared is {', '.join(SOURCES)}"
    )


def _there(source: Source, name: str, folder: Path) -> dict[str, Any]:
    try:
        return _said(name, folder, False, _read(source, folder))
    except (ValueError, OSError) as error:
        raise ValueError(
            f"{folder} is there, but cannot be read as {name} ({error}); move it away, or give "
            "another folder with --to"
        ) from None


def _download(
    source: Source,
    name: str,
    folder: Path,
    ask: Callable[[str], bool],
    say: Callable[[str], None],
    progress: Progress,
) -> list[Path]:
    if not source.remotes:
        raise ValueError(
            f"{name} cannot be downloaded by a program. {source.where}. Then run: "
            f"{_command(name, source)} (with the paths of your files), or extract all into {folder}"
        )
    size = sum(remote.megabytes for remote in source.remotes)
    urls = " and ".join(remote.url for remote in source.remotes)
    if not ask(f"download {name} ({size} MB) from {urls} into {folder}?"):
        raise ValueError(f"{name} was not downloaded")
    files = []
    for remote in source.remotes:
        place = cache_folder() / "downloads" / remote.url.rpartition("/")[2]
        say(f"downloading {place.name}")
        try:
            told = partial(progress, f"downloading {place.name}")
            files.append(download(remote.url, place, remote.checksum, told))
        except DownloadError as error:
            raise DownloadError(
                f"{error}, or get the file by hand and give it with --archive"
            ) from error
    return files


def _place(file: Path, folder: Path, source: Source, progress: Progress) -> None:
    if is_archive(file):
        most = int(3 * source.gigabytes * 10**9)
        unpack(file, folder, most, partial(progress, f"extracting {file.name}"))
    elif file.suffix.lower() in _LISTS:
        shutil.copy(file, folder / file.name)
    else:
        raise ValueError(
            f"{file} is no tar or zip archive and no list ({', '.join(_LISTS)}); is it whole?"
        )


def _said(name: str, folder: Path, prepared: bool, splits: Splits) -> dict[str, Any]:
    tables = splits.tables().items()
    return {
        "name": name,
        "path": str(folder),
        "prepared": prepared,
        "splits": {
            split: {"rows": len(table), "classes": table.classes} for split, table in tables
        },
    }
