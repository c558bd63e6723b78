"""For the site: settings that docstrings list in two columns become lists, formulas keep their
lines."""

import re

import griffe

SETTING = re.compile(r"^([\w@*`][\w@*`.,/ ]{0,40}?) {2,}(\S.*)$")


def markdown(docstring: str) -> str:
    """A docstring in two columns as Markdown.

    A paragraph of lines `name   what it is`, continued by indented lines, becomes a list; another
    one with indented lines or aligned columns is kept as it stands.
    """
    return "\n\n".join(_paragraph(part) for part in docstring.split("\n\n"))


def _paragraph(text: str) -> str:
    lines = text.split("\n")
    if SETTING.match(lines[0]) and all(
        SETTING.match(line) or line.startswith("  ") for line in lines
    ):
        items: list[str] = []
        for line in lines:
            found = SETTING.match(line)
            if found:
                items.append(f"- **{found[1]}**: {found[2]}")
            else:
                items[-1] += f" {line.strip()}"
        return "\n".join(items)
    if any(re.search(r"\S {3,}\S|^ {2,}\S", line) for line in lines):
        return "```text\n" + text + "\n```"
    return text


class Aligned(griffe.Extension):
    """Rewrites every docstring of the reference."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        """Called by griffe for every module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value)
