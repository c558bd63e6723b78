"""For the site: a page for each loss, made from the catalog and its docstring, and the table of
all.

The docstring is read in loss_docstrings and shown by loss_words, its formulas become MathML in
loss_formulas, and the curves are measured in loss_weights.
"""

import html
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml
from loss_docstrings import Told, read
from loss_weights import CLASS_COLUMNS, picture, weights
from loss_words import formula, prose
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from nearkin import catalog
from nearkin.core import Home, home_of

FAMILIES = {
    "pairwise": "Pairs",
    "neighbors": "Neighbors",
    "triplets": "Triplets",
    "structured": "Structure",
    "hinges": "Pairs",
    "ranking": "Ranking",
    "histograms": "Ranking",
    "proxies": "Classes",
    "classification": "Classes",
    "soft_triple": "Classes",
    "bounds": "Bounds",
}
ORDER = list(dict.fromkeys(FAMILIES.values()))
TABLE = "<!-- the table of all losses -->"
LISTS = {"<!-- the table of mining -->": "mining", "<!-- the table of samplers -->": "sampler"}
EXAMPLE = {"classes": 100, "dim": 128}

# What the formula, the words or the first sentence say about the mean: the surest first.
MEANS = (
    ("formula", r"over (positive pairs|anchors that have a positive)", None),
    ("words", r"[Mm]ean is over (?:all |the )?([^.,;:()]*)", None),
    ("words", r"[Mm]ean over (anchors[^.,;:()]*)", None),
    ("words", r"(?:Means over|Over) all ([^.,;:()]*)", None),
    ("formula", r"mean over (\w+(?: \w+)?)  ", None),
    ("formula", r"n the number of (terms that are not 0)", None),
    ("formula", r"mean_\{?same.*mean_\{?(?:same or )?different", "pairs of each kind"),
    ("formula", r"mean_\{?same", "positive pairs"),
    ("formula", r"\(1/A\) Σ", "anchors, of sums"),
    ("formula", r"mean_i\b|\(1/n\) Σ_i", "anchors"),
    ("head", r"mean over (?:the )?violating", "violating triplets"),
    ("head", r"mean over (all triplets)", None),
)


# --- one loss


@dataclass
class Leaf:
    """One loss, all that its page and its row in the table say."""

    name: str
    source: str
    family: str
    home: Home
    slots: Mapping[str, catalog.Slot]
    told: Told
    loss: Any

    @property
    def what(self) -> str:
        """The first sentence without its source."""
        return re.sub(r"\s*\([^()]*(?:18|19|20)\d\d[^()]*\)", "", self.told.head)

    @property
    def mean(self) -> str:
        """What the value is a mean over, as the docstring says it."""
        parts = {
            "formula": "\n".join(right for _, right in self.told.formulas),
            "words": " ".join(" ".join(self.told.notes).split()),
            "head": self.told.head,
        }
        for where, pattern, meaning in MEANS:
            if found := re.search(pattern, parts[where], re.DOTALL):
                said = meaning or found[1].strip()
                return "rows" if said == "anchors" and self.of_classes else said
        return ""

    @property
    def of_classes(self) -> bool:
        """Whether rows are compared with classes."""
        return self.home.compare in CLASS_COLUMNS

    @property
    def separates(self) -> bool:
        """Whether the value is a tightness plus a contrast."""
        return "joint" not in self.told.parts

    @property
    def plain(self) -> dict[str, Any]:
        """The settings that have a value by default."""
        return {key: slot.default for key, slot in self.slots.items() if slot.default is not None}

    def learnable(self, key: str) -> bool:
        """Whether a setting may be a parameter."""
        return "Tensor" in str(self.slots[key].annotation)

    def python(self) -> str:
        """The call that makes it, with what its home needs and its settings."""
        make = catalog.scan(catalog.KINDS["compare"])[self.home.compare]
        taken = catalog.slots_of(make, catalog.KINDS["compare"])
        needed = [k for k, slot in taken.items() if slot.default is catalog.REQUIRED]
        given = {k: v for k, v in EXAMPLE.items() if k in needed} | self.plain
        said = "".join(f", {key}={value!r}" for key, value in given.items())
        return f'criterion = nk.criterion("{self.name}"{said})'

    def node(self) -> str:
        """The objective of a recipe."""
        compare = {self.home.compare: dict(self.home.settings)}
        parts = {"compare": compare, "loss": {self.name: self.plain}}
        lines = [
            f"    {key}: {yaml.safe_dump(part, default_flow_style=True, width=1000).strip()}"
            for key, part in parts.items()
        ]
        return "\n".join(["objective:", "  compared:", *lines])


def leaves() -> list[Leaf]:
    """Every loss of the catalog, by family and name."""
    kind = catalog.KINDS["loss"]
    made = catalog.scan(kind)
    found = []
    for entry in catalog.members("loss"):
        module, loss = entry.module.rpartition(".")[2], made[entry.name]
        family = FAMILIES.get(module, module.replace("_", " ").capitalize())
        home = home_of(loss) or Home("in_batch", "cosine")
        slots = catalog.slots_of(loss, kind)
        found.append(Leaf(entry.name, entry.source, family, home, slots, read(entry.doc), loss))
    rank = {family: place for place, family in enumerate(ORDER)}
    return sorted(found, key=lambda leaf: (rank.get(leaf.family, len(rank)), leaf.name))


def page(leaf: Leaf) -> str:
    """The page of a loss, in Markdown."""
    told, names = leaf.told, tuple(leaf.slots)
    return "\n\n".join(
        part
        for part in (
            f"# {leaf.name}",
            prose(told.head),
            formula(told, names),
            *(prose(note, names) for note in told.notes),
            _section("Use it", told.use, names),
            _section("Equals", told.equals, names),
            "## Weight of a pair",
            _curve(leaf),
            "## Settings" if leaf.slots else "",
            "\n".join(_setting_rows(leaf)),
            f"## In code\n\n```python\nimport nearkin as nk\n\n{leaf.python()}\n```",
            f"In a recipe:\n\n```yaml\n{leaf.node()}\n```",
            _learning(leaf),
            prose(f"Raises {told.raises}.", names) if told.raises else "",
            "## At a glance",
            "\n".join(_facts(leaf)),
        )
        if part
    )


def _section(title: str, text: str, names: tuple[str, ...]) -> str:
    said = text.removeprefix(title).lstrip(":, ")
    # The name of a loss stays as it is written.
    named = re.match(r"\w*", said)[0] in catalog.scan(catalog.KINDS["loss"])
    said = said if named else said[:1].upper() + said[1:]
    return f"## {title}\n\n{prose(said, names)}" if said else ""


def _curve(leaf: Leaf) -> str:
    seen = weights(leaf.loss)
    svg = picture(leaf.name, seen, of_classes=leaf.of_classes)
    return (
        f"<figure>{svg}<figcaption>{html.escape(seen.scene)} Settings by default; the slope is "
        "that of the loss itself.</figcaption></figure>"
    )


def _setting_rows(leaf: Leaf) -> Iterator[str]:
    if not leaf.slots:
        return
    yield "| setting | default | what |\n|---|---|---|"
    for key, slot in leaf.slots.items():
        said = prose(leaf.told.settings[key]).rstrip(".")
        what = f"{said}; may be learned" if leaf.learnable(key) else said
        yield f"| `{key}` | `{slot.default!r}` | {what} |"


def _learning(leaf: Leaf) -> str:
    keys = [key for key in leaf.slots if leaf.learnable(key)]
    if not keys:
        return ""
    start = leaf.slots[keys[0]].default
    return (
        f"Beside `loss`, `learn: {{{keys[0]}: {{start: {start}}}}}` makes the setting a parameter "
        "of the objective."
    )


def _facts(leaf: Leaf) -> Iterator[str]:
    mean = leaf.mean
    yield f"| Parts | {', '.join(leaf.told.parts)}: {_parts(leaf)} |\n|---|---|"
    if mean:
        yield f"| Mean over | {prose(mean)} |"
    yield f"| Compared | `{leaf.home.compare}`, by {leaf.home.closeness} |"
    if leaf.told.time:
        yield f"| Time | {prose(leaf.told.time)} |"
    yield f"| Memory | {prose(leaf.told.memory)} |"
    yield f"| Reference | {prose(leaf.source)} |"


def _parts(leaf: Leaf) -> str:
    return "separates" if leaf.separates else "couples"


def table(all_losses: list[Leaf]) -> str:
    """The table of all losses, a row each."""
    lines = [
        "| loss | family, parts | compared, mean over | memory | when |",
        "|---|---|---|---|---|",
    ]
    for leaf in all_losses:
        memory = re.split(r"[.;,:] | up to | for | with | where ", leaf.told.memory)[0]
        cells = (
            f"[{leaf.name}](losses/{leaf.name}.md)<br><small>{prose(leaf.source)}</small>",
            f"{leaf.family.lower()}, {_parts(leaf)}",
            f"{leaf.home.compare}, {leaf.home.closeness}, {prose(leaf.mean) or '-'}",
            prose(memory),
            prose(_when(leaf.told.use)),
        )
        lines.append("| " + " | ".join(cell.replace("\n", " ") for cell in cells) + " |")
    return "\n".join(lines)


def _when(use: str) -> str:
    """The first clause of what to use it for, without its beginning."""
    said = re.split(r"(?<=[a-z)\d])\. |[;:] ", use.removeprefix("Use it").strip())[0]
    return said.rstrip(".")


def listing(kind: str) -> str:
    """The members of a kind with their first sentences."""
    rows = ["| name | settings | what |", "|---|---|---|"]
    for entry in catalog.members(kind):
        settings = entry.signature.removeprefix(entry.name)[1:-1]
        first = re.split(r"(?<=[a-z)])\.(?:\s|$)", " ".join(entry.doc.split("\n\n")[0].split()))[0]
        said = f"`{settings}`" if settings else ""
        rows.append(f"| `{entry.name}` | {said.replace('|', 'or')} | {prose(first.rstrip('.'))} |")
    return "\n".join(rows)


# --- what mkdocs calls


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """List the pages in the navigation, by family, behind the overview."""
    for item in config.nav or []:
        if isinstance(item, dict) and "Losses" in item:
            kept = [x for x in item["Losses"] if not (isinstance(x, dict) and set(x) & _groups())]
            item["Losses"] = [*kept, *_navigation()]
    return config


def _groups() -> set[str]:
    return {leaf.family for leaf in leaves()}


def _navigation() -> Iterator[dict[str, list[dict[str, str]]]]:
    families: dict[str, list[dict[str, str]]] = {}
    for leaf in leaves():
        families.setdefault(leaf.family, []).append({leaf.name: f"losses/{leaf.name}.md"})
    for family, pages in families.items():
        yield {family: pages}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the page of each loss."""
    for leaf in leaves():
        where = f"losses/{leaf.name}.md"
        files.append(File.generated(config, where, content=page(leaf)))
    return files


def on_page_markdown(text: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put the tables where the overview has a place for them."""
    if TABLE in text:
        text = text.replace(TABLE, table(leaves()))
        for place, kind in LISTS.items():
            text = text.replace(place, listing(kind))
    return text
