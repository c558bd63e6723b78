"""Pictures: what is kept, what is cut, and that workers, processes and stops change no bit."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import tiny_runs
import torch
from PIL import Image
from tiny_runs import assert_identical
from torch import nn

import nearkin as nk
from nearkin import pictures
from nearkin.boxes import Boxed
from nearkin.console import Reporter
from nearkin.crops import DRAWS, center_crop, jittered_crop, random_resized_crop
from nearkin.encoders.base import ImageEncoder
from nearkin.extraction import extract
from nearkin.loop import Interrupted
from nearkin.measure import raw_rows
from nearkin.pictures import read_pictures
from nearkin.pixels import Size, read_images, read_resized
from nearkin.runtime import row_keys, uniform

pytestmark = pytest.mark.usefixtures("cache", "one_thread")

SIZE = Size(20)
KEYS = row_keys(0, 0, torch.arange(70))
ALL = torch.arange(70)


@pytest.fixture
def many(tmp_path: Path) -> list[Path]:
    """70 JPEGs of 24 to 47 pixels a side."""
    paths = []
    for i in range(70):
        generator = np.random.default_rng(i)
        high, wide = generator.integers(24, 48, 2)
        colors = generator.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        paths.append(tmp_path / "many" / f"{i}.jpg")
        paths[-1].parent.mkdir(exist_ok=True)
        Image.fromarray(colors).resize((int(wide), int(high))).save(paths[-1], quality=90)
    return paths


def stores(cache: Path) -> list[Path]:
    return sorted(cache.glob("pictures-*.bin"))


# --- what is taken


def test_evaluation_takes_the_middle_and_training_what_the_crop_cuts(many):
    held = read_pictures(many, SIZE, 16, random_resized_crop)
    assert held.shape == (70, 3, 16, 16)
    assert held.dtype == torch.uint8
    rows = torch.tensor([7, 3, 7])
    kept = [read_resized(many[i], SIZE) for i in rows.tolist()]
    assert torch.equal(held.take(rows), torch.stack([center_crop(p, 16) for p in kept]))
    keys = torch.tensor([10, 20, 30])
    draws = uniform(keys, DRAWS, stream=103).tolist()
    cut = [random_resized_crop(p, d, 16) for p, d in zip(kept, draws, strict=True)]
    assert torch.equal(held.take(rows, keys), torch.stack(cut))


def test_without_a_crop_training_sees_what_evaluation_sees(many):
    held = read_pictures(many, SIZE, 16)
    assert torch.equal(held.take(ALL, KEYS), held.take(ALL))


def test_batches_have_their_channels_last(many):
    x = read_pictures(many, SIZE, 16).take(torch.arange(5))
    assert x.is_contiguous(memory_format=torch.channels_last)
    gray = read_pictures(many, Size(20, channels=1), 16)
    assert gray.take(torch.arange(5)).shape == (5, 1, 16, 16)


@pytest.mark.parametrize("crop", [random_resized_crop, jittered_crop])
def test_the_same_key_gives_the_same_bits_anywhere(many, crop):
    whole = read_pictures(many, SIZE, 16, crop, workers=1).take(ALL, KEYS)
    assert not torch.equal(whole[3], read_pictures(many, SIZE, 16, crop).take(ALL)[3])
    for workers in (2, 5):
        for keep in (True, False):
            held = read_pictures(many, SIZE, 16, crop, workers, keep=keep)
            assert torch.equal(held.take(ALL, KEYS), whole)
            two = [held.take(part, KEYS[part]) for part in (ALL[:33], ALL[33:])]
            assert torch.equal(torch.cat(two), whole)
    chosen = torch.tensor([60, 2, 60])
    again = read_pictures(many, SIZE, 16, crop).select(chosen)
    assert torch.equal(again.take(torch.arange(3), KEYS[chosen]), whole[chosen])


def test_another_key_gives_another_crop(many):
    held = read_pictures(many, SIZE, 16, random_resized_crop)
    same = torch.zeros(8, dtype=torch.int64)
    assert len(held.take(same, KEYS[:8]).flatten(1).unique(dim=0)) == 8


def test_rows_selected_twice_are_those_of_the_first(many):
    held = read_pictures(many, SIZE, 16)
    chosen = held.select(torch.tensor([9, 8, 7, 6])).select(torch.tensor([3, 0]))
    assert len(chosen) == 2
    assert torch.equal(chosen.take(torch.arange(2)), held.take(torch.tensor([6, 9])))
    assert held.select(torch.arange(0)).take(torch.arange(0)).shape == (0, 3, 16, 16)


def test_pictures_are_embedded_and_averaged_like_a_tensor_of_them(many):
    held = read_pictures(many, Size(48), 40)
    as_tensor = held.take(ALL)
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 40 * 40, 4))
    cpu = torch.device("cpu")
    z = extract(net, lambda x: net(x.float()), held, cpu)
    assert torch.equal(z, extract(net, lambda x: net(x.float()), as_tensor, cpu))
    assert torch.allclose(raw_rows(held), raw_rows(as_tensor), atol=1e-4)


# --- what is kept


def test_a_second_call_decodes_nothing(many, cache: Path, monkeypatch):
    told: list[tuple[int, int]] = []
    first = read_pictures(many, SIZE, 16, progress=lambda done, total: told.append((done, total)))
    kept = first.take(ALL)
    assert told == [(0, 70), (70, 70)]
    assert len(stores(cache)) == 1
    monkeypatch.setattr(pictures, "read_resized", None)
    assert torch.equal(read_pictures(many, SIZE, 16).take(ALL), kept)
    assert torch.equal(first.take(ALL), kept)


def test_sizes_have_files_of_their_own(many, cache: Path):
    for size in (
        SIZE,
        Size(21),
        Size(20, False),
        Size(20, channels=1),
        Size(20, True, 3, "bicubic"),
    ):
        read_pictures(many, size, 16)
    assert len(stores(cache)) == 5
    read_pictures(many, SIZE, 18, random_resized_crop, 3)
    assert len(stores(cache)) == 5


@pytest.mark.parametrize("read", [read_pictures, read_images])
@pytest.mark.parametrize("changed", ["pixels._DECODING", "pixels.versions", "pixels.torch"])
def test_another_way_to_decode_has_a_file_of_its_own(many, cache, monkeypatch, read, changed):
    def made():
        read(many, SIZE if read is read_pictures else 16, 16 if read is read_pictures else 3)
        return len(list(cache.iterdir()))

    assert (made(), made()) == (1, 1)
    other = {
        "pixels._DECODING": (changed, 99),
        "pixels.versions": (changed, lambda *_: ["0.1"]),
        "pixels.torch": ("pixels.torch.__version__", "0.1"),
    }
    name, value = other[changed]
    monkeypatch.setattr(f"nearkin.{name}", value)
    assert made() == 2


def test_a_picture_that_vanishes_meanwhile_is_named_and_nothing_is_done_twice(
    many, cache, monkeypatch
):
    decoded = []

    def vanishing(source, size):
        decoded.append(source)
        many[40].unlink(missing_ok=True)
        return read_resized(source, size)

    monkeypatch.setattr(pictures, "read_resized", vanishing)
    with pytest.raises(FileNotFoundError, match=r"there is no image .*40\.jpg"):
        read_pictures(many, SIZE, 16, workers=1)
    assert len(decoded) == len(set(decoded))
    assert list(cache.iterdir()) == []


def test_a_changed_picture_is_read_again(many, photo):
    before = read_pictures(many, SIZE, 16).take(ALL)
    photo(many[3].with_suffix(".png"), 99, 30)
    many[3].with_suffix(".png").rename(many[3])
    after = read_pictures(many, SIZE, 16).take(ALL)
    assert [i for i in range(70) if not torch.equal(before[i], after[i])] == [3]


@pytest.mark.parametrize("content", [b"", b"broken", None])
def test_a_damaged_file_is_made_again(many, cache: Path, content):
    before = read_pictures(many, SIZE, 16).take(ALL)
    (store,) = stores(cache)
    store.write_bytes(store.read_bytes()[:1000] if content is None else content)
    assert torch.equal(read_pictures(many, SIZE, 16).take(ALL), before)


def decoded_when_taken(held, many) -> bool:
    """Whether the pictures are read only now; the file of the first is gone after it."""
    held.take(torch.tensor([0]))
    many[0].unlink()
    try:
        held.take(torch.tensor([0]))
    except FileNotFoundError:
        return True
    return False


def test_without_a_cache_folder_pictures_are_decoded_when_taken(
    many, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    wanted = read_pictures(many, SIZE, 16).take(ALL)
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("NEARKIN_HOME", str(tmp_path / "file" / "below"))
    with pytest.warns(UserWarning, match="cannot be written.*set NEARKIN_HOME"):
        held = read_pictures(many, SIZE, 16)
    assert torch.equal(held.take(ALL), wanted)
    assert decoded_when_taken(held, many)


def test_without_room_pictures_are_decoded_when_taken(many, cache: Path, monkeypatch):
    def full(path):
        return os.terminal_size((0, 0)) if path is None else type("Usage", (), {"free": 1000})

    monkeypatch.setattr("nearkin.store.shutil.disk_usage", full)
    with pytest.warns(
        UserWarning, match=r"70 pictures need 0\.1 MB, and .* are free.*NEARKIN_HOME"
    ):
        held = read_pictures(many, SIZE, 16)
    assert list(cache.iterdir()) == []
    assert decoded_when_taken(held, many)


def test_few_pictures_and_those_not_to_keep_leave_no_file(many, cache: Path):
    assert decoded_when_taken(read_pictures(many[:5], SIZE, 16), many)
    assert decoded_when_taken(read_pictures(many[1:], SIZE, 16, keep=False), many[1:])
    assert len(read_pictures([], SIZE, 16)) == 0
    assert not cache.exists()


def test_pillow_images_are_kept_in_memory(many, cache: Path):
    opened = [Image.open(path) for path in many]
    held = read_pictures(opened, SIZE, 16)
    for picture in opened:
        picture.close()
    assert torch.equal(held.take(ALL), read_pictures(many, SIZE, 16, keep=False).take(ALL))
    assert not cache.exists()


def test_boxes_are_cut_out_of_their_pictures(many, cache: Path):
    boxes = [Boxed(str(path), (2, 3, 22, 23)) for path in many]
    held = read_pictures(boxes, SIZE, 20)
    cut = np.array(Image.open(many[4]).convert("RGB"))[3:23, 2:22]
    assert torch.equal(held.take(torch.tensor([4]))[0], torch.from_numpy(cut).permute(2, 0, 1))
    other = [Boxed(str(path), (2, 3, 23, 23)) for path in many]
    read_pictures(other, SIZE, 16)
    assert len(stores(cache)) == 2


def test_what_cannot_be_read_is_named(many, cache: Path):
    with pytest.raises(FileNotFoundError, match=r"there is no image .*lost\.jpg"):
        read_pictures([*many, many[0].with_name("lost.jpg")], SIZE, 16)
    with pytest.raises(ValueError, match="a path or a Pillow image, not int"):
        read_pictures([3], SIZE, 16)
    with pytest.raises(ValueError, match="must be at least 1, but 0"):
        read_pictures(many, Size(0), 16)
    many[40].write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"40\.jpg cannot be read"):
        read_pictures(many, SIZE, 16)
    assert list(cache.glob("*")) + list(cache.glob(".*")) == []
    held = read_pictures(many, SIZE, 16, workers=2, keep=False)
    assert held.take(torch.arange(40)).shape == (40, 3, 16, 16)
    with pytest.raises(ValueError, match=r"40\.jpg cannot be read"):
        held.take(ALL)


# --- runs


class Tiny(ImageEncoder):
    """Averages of a picture in a grid, mapped to two numbers less."""

    dim = 6

    def __init__(self, crop=random_resized_crop):
        super().__init__(16, 3, size=SIZE, crop=crop)
        self.map = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 6))

    def forward(self, x):
        return self.map(x.float() / 64 - 2)


class Stop(Reporter):
    """Does something after a step."""

    def __init__(self, at, act):
        super().__init__(None)
        self.at, self.act = at, act

    def step(self, epochs, steps):
        def hear(state, batches):
            if state.step == self.at:
                self.act()

        return hear


def break_off():
    raise KeyboardInterrupt


def press():
    os.kill(os.getpid(), signal.SIGINT)


def train(root: Path, out: Path, reporter=None, workers=2, **settings):
    torch.manual_seed(0)
    said = tiny_runs.recipe(root, train={"epochs": 3, "workers": workers})
    said["data"] = {"folder": {"path": str(root), "validation": 0}}
    encoder = Tiny()
    reporter = reporter or Reporter(None)
    return nk.train(said, encoder=encoder, out=out, reporter=reporter, **settings)


@pytest.fixture
def birds(photos) -> Path:
    """64 training pictures of 8 classes, 24 of 3 to test: the first are kept, the others not."""
    return photos({f"train/{i:02}": 10 for i in range(8)} | {f"test/{i}": 8 for i in "xyz"})


@pytest.mark.slow
def test_stops_and_workers_change_nothing_in_a_run_on_pictures(birds, tmp_path: Path):
    train(birds, tmp_path / "whole", workers=1)
    for name, at, act in (("broken", 4, break_off), ("pressed", 7, press)):
        with pytest.raises(Interrupted):
            train(birds, tmp_path / name, Stop(at, act))
        train(birds, tmp_path / name, resume=True)
        assert_identical(tmp_path / "whole", tmp_path / name)


def test_a_picture_that_is_lost_stops_the_step_it_belongs_to(
    birds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(pictures, "WORTH_KEEPING", 10**9)
    lost = sorted((birds / "train" / "03").iterdir())[0]
    with pytest.raises(FileNotFoundError, match=f"there is no image {lost}"):
        train(birds, tmp_path / "run", Stop(2, lost.unlink))
