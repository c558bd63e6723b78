"""`nearkin data prepare`: the archive of a named data set, downloaded where it can be had,
extracted
safely and read once; how that is done stands in archives."""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nearkin.archives import DownloadError, Progress, download, is_archive, unpack, whole_or_not
from nearkin.cache import cache_folder
from nearkin.catalog import KINDS, did_you_mean, scan
from nearkin.data.base import Splits
from nearkin.data.cars import cars
from nearkin.data.cub import cub
from nearkin.data.inshop import inshop
from nearkin.data.official import set_folder
from nearkin.data.omniglot import omniglot
from nearkin.data.sop import sop

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
    """A set and where its archives are: `remotes`, or `where` in words for a person."""

    read: Callable[..., Splits]
    remotes: tuple[Remote, ...] = ()
    where: str = ""


SOURCES = {
    "cub": Source(
        cub,
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
        where="Its own site is gone. Get car_ims.tgz (all 16,185 images) and cars_annos.mat from "
        "somebody who has them, or a mirror of cars_train/ and cars_test/ that holds "
        "cars_train_annos.mat, cars_test_annos_withlabels.mat and cars_meta.mat",
    ),
    "sop": Source(
        sop,
        where="Get Stanford_Online_Products.zip (2.9 GB) with a browser, which has to confirm, "
        "from https://drive.google.com/file/d/1TclrpQOF_ullUP99wk_gjGN8pKvtErG8/view (the link "
        "of https://cvgl.stanford.edu/projects/lifted_struct)",
    ),
    "inshop": Source(
        inshop,
        where="Get Img/img.zip (256 x 256, not img_highres) and Eval/list_eval_partition.txt of "
        "the In-shop Clothes Retrieval Benchmark by hand, from "
        "https://mmlab.ie.cuhk.edu.hk/projects/DeepFashion/InShopRetrieval.html; extract what has "
        "a password yourself",
    ),
    "omniglot": Source(
        omniglot,
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
) -> dict[str, Any]:
    """Put a data set where it is read from, and read it once.

    archives   files at hand instead of a download: archives are extracted, lists (.mat, .txt,
               .csv) are copied, all into one folder
    to         the folder of the set; default: data/NAME in the cache folder
    ask        whether to download, given what from where as text
    say        told of what is going on

    What is there already is read and left as it is. Returns {"name", "path", "prepared", "splits":
    {split: {"rows", "classes"}}}. Raises ValueError or OSError where the set cannot be had or is
    not what it should be; nothing is left at `path` then.
    """
    source = _source(name)
    folder = set_folder(name, to)
    if folder.exists() and any(folder.iterdir()):
        return _there(source, name, folder)
    files = [Path(file) for file in archives]
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"there is no file {file}; give an archive of {name}")
    loaded = not files
    if loaded:
        files = _download(source, name, folder, ask, say)
    with whole_or_not(folder) as staged:
        for file in files:
            say(f"extracting {file.name}")
            _place(file, staged)
        try:
            source.read(staged)
        except (ValueError, OSError) as error:
            what = str(error).replace(str(staged), "what was extracted")
            held = ", ".join(str(file) for file in files)
            raise ValueError(f"{held} cannot be read as {name}: {what}") from None
    for file in files if loaded else ():
        file.unlink()
    return _said(name, folder, True, source.read(folder))


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
        return _said(name, folder, False, source.read(folder))
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
) -> list[Path]:
    if not source.remotes:
        raise ValueError(
            f"{name} cannot be downloaded by a program. {source.where}. Then run: nearkin data "
            f"prepare {name} --archive FILE (once for each file), or extract all into {folder}"
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
            files.append(download(remote.url, place, remote.checksum, _tenths(place.name, say)))
        except DownloadError as error:
            raise DownloadError(
                f"{error}, or get the file by hand and give it with --archive"
            ) from error
    return files


def _tenths(name: str, say: Callable[[str], None]) -> Progress:
    """Says a line for each tenth of a download."""
    said = 0

    def progress(done: int, total: int) -> None:
        """Says the tenth that was just passed."""
        nonlocal said
        if total and 10 * done // total > said:
            said = 10 * done // total
            say(f"{name}: {done // 10**6} of {total // 10**6} MB")

    return progress


def _place(file: Path, folder: Path) -> None:
    if is_archive(file):
        unpack(file, folder)
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
