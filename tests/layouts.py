"""Writes the official layouts of the named data sets with a few images each, as their archives have
them."""

import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

CLOTHES = "WOMEN/Dresses"


def image(path: Path, seed: int, mode: str = "RGB") -> Path:
    """One small picture of random pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (9, 12, 3) if mode == "RGB" else (9, 12)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path, "PNG" if path.suffix == ".png" else "JPEG")
    return path


def cub(root: Path, classes: Sequence[int] = (1, 2, 3, 100, 101, 102, 200)) -> Path:
    """Two images a class; the second one of class 2 is gray."""
    inside = root / "CUB_200_2011"
    names = [f"{code:03d}.Bird_{code}/Bird_{code}_{k}.jpg" for code in classes for k in (0, 1)]
    for seed, name in enumerate(names):
        image(inside / "images" / name, seed, "L" if name.endswith("Bird_2_1.jpg") else "RGB")
    rows = list(enumerate(names, 1))
    (inside / "images.txt").write_text("".join(f"{i} {name}\n" for i, name in rows))
    codes = "".join(f"{i} {int(name[:3])}\n" for i, name in rows)
    (inside / "image_class_labels.txt").write_text(codes)
    # The archive drops this one beside the folder.
    (root / "attributes.txt").write_text("1 has_bill_shape::curved\n")
    return root


CARS = tuple(f"{'Acura' if i < 99 else 'Ram C/V'} {i:03d}" for i in range(1, 197))


def _annotations(rows: list[tuple[str, int]], name: str) -> np.ndarray:
    kinds = [("bbox_x1", object), ("class", object), (name, object)]
    held = np.empty((1, len(rows)), dtype=kinds)
    for i, (file, code) in enumerate(rows):
        held[0, i] = (1, np.uint8(code), file)
    return held


def cars(root: Path, classes: Sequence[int] = (1, 2, 97, 98, 99, 100, 196)) -> Path:
    """Two images a class in car_ims/, numbered in an order that mixes the classes."""
    from scipy.io import savemat

    root.mkdir(parents=True, exist_ok=True)
    rows = [
        (f"car_ims/{i:06d}.jpg", code) for i, code in enumerate([*classes, *reversed(classes)], 1)
    ]
    for seed, (name, _) in enumerate(rows):
        image(root / name, seed)
    names = np.array(CARS, dtype=object)[None]
    held = {"annotations": _annotations(rows, "relative_im_path"), "class_names": names}
    savemat(root / "cars_annos.mat", held)
    return root


def cars_in_parts(root: Path, classes: Sequence[int] = (1, 2, 97, 98, 99, 100, 196)) -> Path:
    """The same classes in cars_train/cars_train and cars_test/cars_test, one image each."""
    from scipy.io import savemat

    devkit = root / "car_devkit" / "devkit"
    devkit.mkdir(parents=True)
    for part, place in (("train", devkit), ("test", root)):
        rows = [(f"{i:05d}.jpg", code) for i, code in enumerate(classes, 1)]
        for seed, (name, _) in enumerate(rows):
            image(
                root / f"cars_{part}" / f"cars_{part}" / name, seed + (50 if part == "test" else 0)
            )
        labels = "annos" if part == "train" else "annos_withlabels"
        held = {"annotations": _annotations(rows, "fname")}
        savemat(place / f"cars_{part}_{labels}.mat", held)
    savemat(devkit / "cars_meta.mat", {"class_names": np.array(CARS, dtype=object)[None]})
    return root


def sop(root: Path, train: int = 6, test: int = 4) -> Path:
    """Two images a product, products alternating between lamps and bicycles."""
    inside = root / "Stanford_Online_Products"
    number = 0
    for part, products in (
        ("train", range(1, train + 1)),
        ("test", range(train + 1, train + test + 1)),
    ):
        lines = ["image_id class_id super_class_id path"]
        for product in products:
            category = ("bicycle", "lamp")[product % 2]
            for k in (0, 1):
                number += 1
                name = f"{category}_final/{1000 + product}_{k}.JPG"
                image(inside / name, number)
                lines.append(f"{number} {product} {1 + 6 * (product % 2)} {name}")
        (inside / f"Ebay_{part}.txt").write_text("\n".join(lines) + "\n")
    return root


def inshop(root: Path, train: int = 4, test: int = 3) -> Path:
    """Items of two images: both train, or one is a query and one in the gallery."""
    rows = []
    for item in range(1, train + test + 1):
        parts = ("train", "train") if item <= train else ("query", "gallery")
        for k, part in enumerate(parts):
            name = f"img/{CLOTHES}/id_{item:08d}/0{k}_1_front.jpg"
            image(root / "Img" / name, 2 * item + k)
            rows.append(f"{name}    id_{item:08d}    {part}")
    (root / "Eval").mkdir(parents=True)
    head = [str(len(rows)), "image_name item_id evaluation_status"]
    (root / "Eval" / "list_eval_partition.txt").write_text("\n".join([*head, *rows]) + "\n")
    return root


def omniglot(root: Path) -> Path:
    """Three alphabets to train and two to test, three characters of two drawings each."""
    alphabets = {"background": ("Balinese", "Greek", "Latin"), "evaluation": ("Angelic", "Tengwar")}
    seed = 0
    for part, names in alphabets.items():
        for name in names:
            for character in ("character01", "character02", "character10"):
                for k in (1, 2):
                    seed += 1
                    folder = root / "omniglot-py" / f"images_{part}" / name / character
                    image(folder / f"{seed:04d}_{k:02d}.png", seed, "1")
    return root


ALL = {"cub": cub, "cars": cars, "sop": sop, "inshop": inshop, "omniglot": omniglot}


def zipped(folder: Path, file: Path) -> Path:
    """A zip archive of all files below a folder."""
    with zipfile.ZipFile(file, "w") as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, path.relative_to(folder))
    return file


def tarred(folder: Path, file: Path) -> Path:
    """A .tgz archive of all that lies in a folder."""
    with tarfile.open(file, "w:gz") as archive:
        for path in sorted(folder.iterdir()):
            archive.add(path, path.name)
    return file
