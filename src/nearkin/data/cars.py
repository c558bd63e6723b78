"""The set `cars`: Cars-196 with the split of metric learning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nearkin.data.base import Splits
from nearkin.data.official import FACTS, find, image_table, note_counts, refuse_missing, search
from nearkin.data.official import set_folder as folder_of
from nearkin.data.splits import hold_out

OFFICIAL = {"train": (8054, 98), "test": (8131, 98)}
_TRAINED = 98
_TEST_LABELS = "cars_test_annos_withlabels.mat"


def cars(
    path: str | Path | None = None,
    validation: float = 0.0,
    contiguous: bool = True,
    seed: int = 0,
) -> Splits:
    """Photos of 196 models of cars (Krause et al. 2013): the first 98 train, the others test.

    Source: Stanford Cars; its own site is gone, `nearkin data prepare cars` says what remains.
    License: for research only. The split of metric learning (Song et al. 2016): classes 1-98 train
    (8,054 images), 99-196 test (8,131); the archive's own 8,144 and 8,041 are for classification.
    Either layout is read: car_ims/ with cars_annos.mat, or cars_train/ and cars_test/ with
    cars_train_annos.mat, cars_test_annos_withlabels.mat and cars_meta.mat.

    path        the folder with them, or one above it; default: data/cars in the cache folder
    validation  share of the training classes that validate; 0, the papers' protocol, holds out none
    contiguous  True: the last classes in the order of their names validate, whole makes but one;
                False: drawn at random, with siblings in training
    seed        decides the draw of classes where they are not contiguous

    Inputs are paths of color pictures, a few of them gray; ids are paths below the folder. Raises
    FileNotFoundError where the set or a listed image is missing, ValueError for damaged lists;
    warns where the counts are not the official ones.
    """
    folder = folder_of("cars", path)
    together = search(folder, "cars_annos.mat")
    two_parts = search(folder, _TEST_LABELS) and search(folder, "cars_train")
    if together is None and two_parts:
        root, files, codes, names = _two_parts(folder)
    else:
        root, files, codes, names = _together(folder)
    refuse_missing("cars", root, files, "the annotations")
    parts = {}
    for part, tests in (("train", False), ("test", True)):
        chosen = [i for i, code in enumerate(codes) if (code > _TRAINED) == tests]
        classes = [names[codes[i] - 1] for i in chosen]
        parts[part] = image_table(root, [files[i] for i in chosen], classes)
    note_counts("cars", parts, OFFICIAL)
    train, validated = hold_out(parts["train"], validation, seed=seed, contiguous=contiguous)
    return Splits(train.compact(), validated and validated.compact(), parts["test"], facts=FACTS)


_Listed = tuple[Path, list[str], list[int], list[str]]


def _together(folder: Path) -> _Listed:
    """The root, the files, the classes from 1, the names: one folder for all images."""
    file = find("cars", folder, "cars_annos.mat")
    root = find("cars", folder, "car_ims").parent
    held = _read(file, "annotations", "class_names")
    rows, names = held["annotations"], _texts(held["class_names"])
    files = [str(name) for name in rows["relative_im_path"]]
    return root, files, _codes(rows["class"], names, file), names


def _two_parts(folder: Path) -> _Listed:
    """The same of the two folders that the set had for classification."""
    meta = find("cars", folder, "cars_meta.mat")
    names = _texts(_read(meta, "class_names")["class_names"])
    files: list[str] = []
    codes: list[int] = []
    for part, labels in (("cars_train", "cars_train_annos.mat"), ("cars_test", _TEST_LABELS)):
        file = find("cars", folder, labels)
        rows = _read(file, "annotations")["annotations"]
        pictures = find("cars", folder, part)
        pictures = pictures / part if (pictures / part).is_dir() else pictures
        inside = pictures.relative_to(folder).as_posix()
        files += [f"{inside}/{name}" for name in rows["fname"]]
        codes += _codes(rows["class"], names, file)
    return folder, files, codes, names


def _read(file: Path, *names: str) -> dict[str, Any]:
    import numpy as np
    from scipy.io import loadmat

    try:
        held = loadmat(file, squeeze_me=True)
        return {name: np.atleast_1d(held[name]) for name in names}
    except KeyError as error:
        raise ValueError(f"{file} holds no {error.args[0]}; get the file anew") from None
    except Exception as error:  # The reader answers broken bytes with whatever went wrong inside.
        raise ValueError(f"{file} cannot be read ({error}); get the file anew") from error


def _texts(names: Any) -> list[str]:
    return [str(name) for name in names]


def _codes(classes: Any, names: list[str], file: Path) -> list[int]:
    codes = [int(code) for code in classes]
    if not all(1 <= code <= len(names) for code in codes):
        raise ValueError(f"{file} has classes beyond 1..{len(names)}; get the file anew")
    return codes
