"""The docstring of a loss in its parts: formulas, settings, what to use it for, memory. How they
are
shown is decided beside."""

import re
from dataclasses import dataclass, field

from docstrings import SETTING

PART = re.compile(r"(?:other\.\w+|[a-z]{4,})$")  # a part, beside symbols such as s_ij
VALUES = ("tightness", "contrast", "joint")


@dataclass
class Told:
    """The parts of a docstring, paragraphs of plain text.

    formulas   (left side, right side), or ("", words with equations in them)
    """

    head: str = ""
    formulas: list[tuple[str, str]] = field(default_factory=list)
    settings: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    use: str = ""
    equals: str = ""
    time: str = ""
    memory: str = ""
    raises: str = ""

    @property
    def parts(self) -> list[str]:
        """tightness, contrast, joint and what else the formulas name."""
        return [left for left, _ in self.formulas if PART.match(left)]

    def end(self, paragraph: str) -> str:
        """Take memory, time and what is raised from the end of a paragraph; the rest of it."""
        found = re.search(r"(?:Memory O\(|Time |Raises )", paragraph)
        if not found:
            return paragraph.strip("\n")
        rest, ending = paragraph[: found.start()], " ".join(paragraph[found.start() :].split())
        for piece in re.split(r"(?=Memory O\(|Raises )", ending):
            first, _, words = piece.partition(" ")
            if first in ("Time", "Memory", "Raises"):
                setattr(self, first.lower(), _plain(words))
        return rest.rstrip()


def _plain(words: str) -> str:
    """Without the stop, and without `and memory` where time and memory are of one order."""
    return words.removeprefix("and memory ").strip().rstrip(".:")


def read(doc: str) -> Told:
    """A docstring in its parts, in whatever order the last ones stand and whichever are missing."""
    first, *rest = doc.split("\n\n")
    told = Told(head=" ".join(first.split()))
    for paragraph in rest:
        paragraph = told.end(paragraph)
        if not paragraph:
            continue
        lines = paragraph.strip("\n").split("\n")
        if any(line.partition("=")[0].strip() in VALUES for line in lines):
            told.formulas += _formulas(lines)
        elif all(SETTING.match(line) or line.startswith("  ") for line in lines):
            told.settings |= _settings(lines)
        elif paragraph.startswith("Use it"):
            told.use = " ".join(paragraph.split())
        elif paragraph.startswith("Equals"):
            told.equals = " ".join(paragraph.split())
        else:
            told.notes.append(paragraph.rstrip())
    return told


def _formulas(lines: list[str]) -> list[tuple[str, str]]:
    said: list[str] = []
    for line in lines:
        for piece in re.split(r" {3,}", line.strip()):
            whole = not said or (
                said[-1].endswith(":") or (_sides(said[-1])[0] and _sides(piece)[0])
            )
            # What is neither an equation nor begins words goes on with what came before.
            if whole or re.match(r"With |where ", piece):
                said.append(piece)
            else:
                said[-1] += " " + piece
    return [_sides(piece) for piece in said]


def _sides(line: str) -> tuple[str, str]:
    found = re.match(r"([^\s=]+(?:\([^()]*\))?)\s+[=∝] (.*)$", line)
    return (found[1], found[2]) if found and not line.startswith("With") else ("", line)


def _settings(lines: list[str]) -> dict[str, str]:
    said: dict[str, str] = {}
    for line in lines:
        found = SETTING.match(line)
        if found:
            said[found[1]] = found[2]
        else:
            said[next(reversed(said))] += f" {line.strip()}"
    return {key: what for names, what in said.items() for key in re.split(r", ?", names)}
