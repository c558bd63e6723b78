"""A run folder as training would leave it, small and made up; no test stands here."""

import json

import numpy as np
from PIL import Image, ImageDraw

HOSTILE = "<script>alert(1)</script>"

RECIPE = """\
seed: 0
data: {glyphs: {}}
encoder: {small_cnn: {dim: 64}}
sampler: {uniform: {batch: 128}}
objective:
  compared:
    compare: {classifier: {}}
    loss: {cross_entropy: {label_smoothing: 0.1}}
optim:
  default: {sgd: {lr: 0.05, momentum: 0.9, nesterov: true, weight_decay: 5e-4}}
  objective: {sgd: {lr: 0.5}}
train: {epochs: 10, schedule: {warmup_cosine: {warmup: 100}}, select: validation}
evaluate: [recall@1, recall@2, recall@4, recall@8, map@r, nmi, ami, information]
"""


def interval(value, half=0.02):
    return {"value": value, "low": value - half, "high": value + half}


def block(scale, queries=240):
    values = {f"recall@{k}": interval(scale * k**0.15) for k in (1, 2, 4, 8)}
    values |= {"map@r": interval(0.45 * scale, 0.01)}
    values |= {"nmi": interval(0.5 + 0.4 * scale), "nmi_random": {"value": 0.541}}
    values |= {"ami": interval(0.6 * scale)}
    bits = {"bits": 5.2 * scale, "low": 5.0 * scale, "high": 5.4 * scale, "ceiling": 5.32}
    return {
        "cosine": values,
        "euclidean": values,
        "information": bits,
        "queries": queries,
        "without_relevant": 3,
    }


def metrics():
    return {
        "test": block(0.612),
        "validation": block(0.63),
        "untrained": block(0.12),
        "raw": block(0.38),
        "selected": {"epoch": 8, "by": "validation map@r"},
        "seconds": 52.3,
    }


def log(steps=400, epochs=10):
    """Lines as the loop writes them: falling terms, warm-up and cosine, two histograms."""
    noise = np.random.default_rng(0).normal(size=(steps, 2))
    edges = np.linspace(0, 2, 51)
    lines = [
        {
            "event": "start",
            "steps": steps,
            "epochs": epochs,
            "rows": 5120,
            "classes": 128,
            "coverage": "an epoch visits every row once",
            "panel": "256 of 5,120 training rows and 400 of 900 validation rows",
        },
        {"event": "distances", "when": "untrained", **histogram(edges, 0.7, 0.8)},
        *panel_lines(0, 0.0),
    ]
    for step in range(steps):
        part = step / steps
        tightness = 2.2 * np.exp(-3 * part) + 0.12 * noise[step, 0]
        contrast = 2.4 * np.exp(-2 * part) + 0.08 * noise[step, 1]
        rate = min((step + 1) / 100, 0.5 + 0.5 * np.cos(np.pi * part))
        line = {"event": "step", "step": step, "epoch": step * epochs // steps, "turns": 1}
        line["terms"] = {
            "total": tightness + contrast,
            "tightness": tightness,
            "contrast": contrast,
        }
        line["rates"] = {"encoder": 0.05 * rate, "objective": 0.5 * rate}
        line["rows_per_second"] = 9000.0
        if step % 50 == 0:
            line |= {"pull": 0.9 * np.exp(-2 * part), "push": 0.85 * np.exp(-1.9 * part)}
        lines.append(line)
        if (step + 1) % (steps // epochs) == 0:
            epoch = (step + 1) * epochs // steps - 1
            lines += [*panel_lines(step + 1, part, epoch), epoch_line(epoch, step, epochs)]
    lines.append({"event": "distances", "when": "trained", **histogram(edges, 0.75, 1.3)})
    lines += [{"event": "warning", "message": "12 batches had no positive pair"}] * 2
    return lines


def epoch_line(epoch, step, epochs):
    part = epoch / epochs
    return {
        "event": "epoch",
        "epoch": epoch,
        "step": step,
        "seconds": 5.1,
        "validation": {"map@r": 0.08 + 0.2 * part**0.5, "recall@1": 0.3 + 0.33 * part**0.5},
        "information": {"bits": 1.2 + 2.4 * part**0.5, "ceiling": 5.32},
    }


def panel_lines(step, part, epoch=None):
    where = {"event": "panel", "step": step, **({} if epoch is None else {"epoch": epoch})}
    for of, gap in (("training", 1.0), ("validation", 0.8)):
        bits = 1.2 + 3.2 * gap * part**0.3
        yield {
            **where,
            "of": of,
            "rows": 256 if of == "training" else 400,
            "classes": 20 if of == "training" else 40,
            "information": {
                "bits": bits,
                "low": bits - 0.2,
                "high": bits + 0.2,
                "ceiling": 4.32 if of == "training" else 5.32,
            },
            "jsd": 0.02 + 0.9 * gap * part**0.3,
            "alignment": 0.1 + 0.4 * part**0.5 / gap,
            "uniformity": -0.2 - 3 * gap * part**0.3,
            "cosine_mean": 0.9 * np.exp(-4 * part),
            "effective_rank": 6 + 35 * gap * part**0.7,
            "simplex_distance": 1.3 - 1.1 * gap * part**0.3,
            "simplex_least": 0.0,
            "seconds": 0.1,
        }


def histogram(edges, same, different):
    def density(center, width):
        middle = (edges[1:] + edges[:-1]) / 2
        height = np.exp(-0.5 * ((middle - center) / width) ** 2)
        return (height / (height * np.diff(edges)).sum()).tolist()

    return {
        "edges": edges.tolist(),
        "same": density(same, 0.22),
        "different": density(different, 0.15),
    }


def write_run(folder, *, classes=40, each=6, dim=16, spread=1.1, lines=None, names=None, **arrays):
    """A finished run folder; `arrays` replace or add to what embeddings.npz holds."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    labels = np.repeat(np.arange(classes), each)
    centers = rng.normal(size=(classes, dim))
    embeddings = centers[labels] + spread * rng.normal(size=(len(labels), dim))
    every = np.ones(len(labels), dtype=bool)
    stored = {
        "embeddings": embeddings.astype(np.float32),
        "labels": labels,
        "relevant": labels,
        "names": np.array(names or [chr(0x410 + c) for c in range(classes)]),
        "ids": np.array([f"test/{label}/{row}.png" for row, label in enumerate(labels)]),
        "is_query": every,
        "is_gallery": every,
    }
    np.savez(folder / "embeddings.npz", **(stored | arrays))
    environment = {"format": 1, "seed": 0, "versions": {"nearkin": "0.1.0", "torch": "2.13.0"}}
    environment |= {"hardware": {"cpu": "two cores", "threads": 2}, "commit": "119d35c"}
    (folder / "environment.json").write_text(json.dumps(environment))
    (folder / "recipe.yaml").write_text(RECIPE)
    (folder / "metrics.json").write_text(json.dumps(metrics()))
    written = log() if lines is None else lines
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in written))
    return folder


def letter(row, side=32, each=6):
    """A drawing of the letter of a row's class, turned a little, as a picture of `side` pixels."""
    from PIL import ImageFont

    picture = Image.new("L", (side, side), "white")
    font = ImageFont.load_default(size=side * 0.75)
    drawing = ImageDraw.Draw(picture)
    drawing.text((side / 2, side / 2), chr(0x41 + row // each % 26), font=font, anchor="mm")
    return picture.rotate((row % each - 2) * 7, fillcolor="white")
