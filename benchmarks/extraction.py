"""What extraction gains on a CPU over the plain float32 loop, and what it costs in retrieval.

Prints images/s of ResNet-50 at 224 x 224 with random weights: a plain loop (one network, batches in
turn, NCHW float32) against `nearkin.extraction.extract` in float32 and bfloat16. The loops take
turns (A B C A B C ...), so that a busy machine slows them alike.

With --network and --photos it also prints recall@1 on real photos for each of them: a MobileNetV2
with ImageNet weights (a folder with mobilenetv2_torch.py and mobilenetv2_int8.npz), whose
convolutions are given BatchNorms that do nothing, so that there is something to fold; photos are
.npz files with encoded images back to back in `data`, their `start`, `label` and `split`.

    python benchmarks/extraction.py [--rows 160] [--repeats 5] [--threads 2]
        [--network FOLDER] [--photos FILE.npz ...] [--limit 2000] [--side 224]
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nearkin.encoders.resnet import ResNet50Paper
from nearkin.evaluation import evaluate
from nearkin.extraction import extract
from nearkin.runtime import autocast

CPU, TARGET = torch.device("cpu"), 4.0
Embedding = Callable[[nn.Module, Tensor], Tensor]


@torch.no_grad()
def plain(net: nn.Module, pictures: Tensor, batch: int = 32) -> Tensor:
    """The loop that anybody would write."""
    return torch.cat([net(part) for part in pictures.split(batch)])


def fast(precision: str) -> Embedding:
    """`extract` in this precision."""

    def embedding(net: nn.Module, pictures: Tensor) -> Tensor:
        def embed(x: Tensor) -> Tensor:
            with autocast(CPU, precision):
                return net(x).float()

        return extract(net, embed, pictures, CPU, precision)

    return embedding


FIRST = "plain float32 loop"
WAYS: Mapping[str, Embedding] = {
    FIRST: plain,
    "extract, float32": fast("float32"),
    "extract, bfloat16": fast("bfloat16"),
}


def speed(rows: int, repeats: int) -> None:
    """Images/s of each way after a short round to warm up, and ratios round by round: by the clock,
    and by the seconds that cores worked, which other work on the machine changes less."""
    torch.manual_seed(0)
    net = ResNet50Paper(weights=None).eval()
    usual = ResNet50Paper(weights=None).eval().to(memory_format=torch.contiguous_format)
    usual.load_state_dict(net.state_dict())
    # The plain loop keeps torchvision's own layout: no channels last.
    usual.pixels = Scaled(net.pixels)
    pictures = torch.randint(0, 256, (rows, 3, 224, 224), dtype=torch.uint8)
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in WAYS}
    for round_ in range(repeats + 1):
        for name, way in WAYS.items():
            began, worked = time.perf_counter(), time.process_time()
            way(usual if way is plain else net, pictures if round_ else pictures[:64])
            if round_:
                seconds = time.perf_counter() - began
                taken[name].append((seconds, time.process_time() - worked))
    print(f"ResNet-50, {rows} pictures of 224 x 224, {torch.get_num_threads()} threads")
    for name, rounds in taken.items():
        wall, cores = (
            statistics.median(a[i] / b[i] for a, b in zip(taken[FIRST], rounds, strict=True))
            for i in (0, 1)
        )
        rate = rows / statistics.median(seconds for seconds, _ in rounds)
        print(f"  {name:22} {rate:7.1f} images/s   x {wall:.2f}   by CPU seconds x {cores:.2f}")
    print(f"  target of the fastest: x {TARGET:.0f}")


class Scaled(nn.Module):
    """The same standardization in the usual layout."""

    def __init__(self, pixels: Any):
        super().__init__()
        self.shift, self.scale = pixels.shift, pixels.scale

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift


class Padded(nn.Module):
    """A convolution of the network given, its padding, a BatchNorm and the activation apart."""

    def __init__(self, given: Any):
        super().__init__()
        wide, narrow, side, _ = given.weight.shape
        self.side, self.stride = side, given.stride
        self.conv = nn.Conv2d(
            narrow * given.groups, wide, side, given.stride, groups=given.groups, bias=False
        )
        self.norm = nn.BatchNorm2d(wide)
        self.act = nn.ReLU6() if given.act else nn.Identity()
        generator = torch.Generator().manual_seed(wide)
        with torch.no_grad():
            scale = torch.rand(wide, generator=generator) + 0.5
            mean = torch.randn(wide, generator=generator)
            self.norm.running_var.uniform_(0.5, 2, generator=generator)
            self.norm.running_mean.copy_(mean)
            self.norm.weight.copy_(scale * (self.norm.running_var + self.norm.eps).sqrt())
            self.norm.bias.copy_(given.bias + mean * scale)
            self.conv.weight.copy_(given.weight / scale[:, None, None, None])

    def forward(self, x: Tensor) -> Tensor:
        if self.side > 1:
            sides = [max(self.side - self.stride, 0)] * 2  # of even maps, as TensorFlow pads them
            x = nn.functional.pad(
                x, [part for all_ in sides for part in (all_ // 2, -(-all_ // 2))]
            )
        return self.act(self.norm(self.conv(x)))


def network(folder: Path) -> nn.Module:
    """MobileNetV2 with ImageNet weights, for pixels 0..255."""
    spec = importlib.util.spec_from_file_location("given", folder / "mobilenetv2_torch.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    net = module.mobilenetv2(folder / "mobilenetv2_int8.npz").eval()
    whole = nn.Sequential(Centered(), net).eval()
    x = torch.rand(2, 3, 224, 224) * 255
    with torch.no_grad():
        before = whole(x)
        for parent in list(net.modules()):
            for name, child in parent.named_children():
                if type(child).__name__ == "Conv":
                    setattr(parent, name, Padded(child).eval())
        off = (whole(x) - before).norm() / before.norm()
    assert off < 1e-3, f"the BatchNorms were to do nothing, but outputs differ by {off:.1e}"
    return whole


class Centered(nn.Module):
    """Pixels 0..255 -> -1..1, channels last."""

    def forward(self, x: Tensor) -> Tensor:
        return x.contiguous(memory_format=torch.channels_last).float() / 127.5 - 1


def photos(path: Path, limit: int, side: int) -> tuple[Tensor, np.ndarray]:
    """(N, 3, side, side) uint8 and labels of the test classes, at most `limit` photos, whole
    classes."""
    from PIL import Image

    with np.load(path) as held:
        data, start, label, split = (held[key] for key in ("data", "start", "label", "split"))
    chosen = np.flatnonzero(split == split.max())
    order = np.argsort(label[chosen], kind="stable")
    chosen = chosen[order][:limit]

    def decoded(i: int) -> Tensor:
        raw = io.BytesIO(data[start[i] : start[i + 1]].tobytes())
        picture = Image.open(raw).convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1)

    with ThreadPoolExecutor() as pool:
        return torch.stack(list(pool.map(decoded, chosen))), label[chosen]


def retrieval(folder: Path, paths: list[Path], limit: int, side: int) -> None:
    """recall@1 of each way on each set of photos, and images/s."""
    net = network(folder)
    for path in paths:
        pictures, label = photos(path, limit, side)
        print(f"{path.name}: {len(label)} photos of {len(set(label.tolist()))} classes")
        scores: dict[str, float] = {}
        for name, way in WAYS.items():
            began = time.perf_counter()
            z = way(net, pictures)
            seconds = time.perf_counter() - began
            scores[name] = evaluate(z.numpy(), label, metrics=("recall@1",))["recall@1"]
            off = 100 * (scores[name] - scores[FIRST])
            print(
                f"  {name:22} recall@1 {100 * scores[name]:6.2f}   {off:+.2f} points"
                f"   {len(label) / seconds:7.1f} images/s"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=160)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--network", type=Path)
    parser.add_argument("--photos", type=Path, nargs="*", default=[])
    parser.add_argument("--limit", type=int, default=2000)
    parser.add_argument("--side", type=int, default=224)
    said = parser.parse_args()
    torch.set_num_threads(said.threads)
    if said.repeats:
        speed(said.rows, said.repeats)
    if said.network is None or not said.photos:
        print("retrieval on photos is skipped; give --network and --photos")
        return
    retrieval(said.network, said.photos, said.limit, said.side)


if __name__ == "__main__":
    main()
