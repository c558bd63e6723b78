"""Formulas of docstrings, unicode in, MathML out: a small language is read and written as LaTeX.

What it knows: Σ_{same}, mean_i, e^{-x}, [x]₊, (1/n), |x|, √(x), primes, ², greek letters, words.
Which lines of a docstring are formulas is decided in loss_pages.
"""

import re
import unicodedata

from latex2mathml.converter import convert

TOKEN = re.compile(
    r"(?P<space> +)|(?P<number>\d+(?:\.\d+)?)|(?P<word>[A-Za-z]+)|(?P<dots>\.\.\.|…)|(?P<sign>.)",
    re.DOTALL,
)
FUNCTIONS = {"log", "exp", "cos", "sin", "tan", "max", "min", "arccos", "tanh"}
JOINING = {"a", "an", "and", "at", "by", "for", "if", "in", "is", "no", "not", "of", "or", "to"}
SIGNS = {
    "·": r"\cdot ",
    "×": r"\times ",
    "≤": r"\le ",
    "≥": r"\ge ",
    "<": "<",
    ">": ">",
    "≠": r"\ne ",
    "≈": r"\approx ",
    "∈": r"\in ",
    "∉": r"\notin ",
    "∪": r"\cup ",
    "∝": r"\propto ",
    "∞": r"\infty ",
    "∂": r"\partial ",
    "→": r"\to ",
    "ℓ": r"\ell ",
    "−": "-",
    "|": r"\mid ",
    "/": r"\,/\,",
    ",": r",\;",
    ";": r";\;",
    ":": r":\;",
    "%": r"\%",
    **{sign: sign for sign in "+-=!*.?"},
}
GREEK = {
    chr(code): "\\" + unicodedata.name(chr(code)).split()[-1].lower().replace("lamda", "lambda")
    for code in range(0x3B1, 0x3CA)
    if code != 0x3C2
} | {
    letter: "\\" + name
    for letter, name in zip(
        "ΓΔΘΛΞΠΣΦΨΩ",
        ("Gamma", "Delta", "Theta", "Lambda", "Xi", "Pi", "Sigma", "Phi", "Psi", "Omega"),
        strict=True,
    )
}
LARGE = {"Σ": r"\sum", "Π": r"\prod", "∏": r"\prod", "∑": r"\sum"}
BELOW = dict(zip("₀₁₂₃₄₅₆₇₈₉₊₋ᵢⱼₖₙₐₚₘ", "0123456789+-ijknapm", strict=True))
ABOVE = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ᵀⁿ", "0123456789+-Tn", strict=True))
ACCENTS = {"\u0302": r"\hat", "\u0303": r"\tilde", "\u0304": r"\bar"}
CLOSING = {"(": ")", "[": "]", "{": "}", "⌊": "⌋"}
FENCES = {"(": ("(", ")"), "[": ("[", "]"), "⌊": (r"\lfloor ", r"\rfloor "),
          "{": (r"\{", r"\}")}  # fmt: skip


def mathml(formula: str, names: tuple[str, ...] = (), *, block: bool = False) -> str:
    """The MathML of a formula; `names` are settings, which stay one word even with a `_`.

    Raises ValueError for a sign that the language does not know and for brackets that do not close.
    """
    return convert(latex(formula, names), display="block" if block else "inline")


def latex(formula: str, names: tuple[str, ...] = ()) -> str:
    """The LaTeX of a formula; raises as `mathml` does."""
    return _Reader(formula, names).all()


def _accented(sign: str) -> str:
    """A letter with an accent as the letter and its accent; every other sign as it is."""
    apart = unicodedata.normalize("NFD", sign)
    return apart if apart[-1] in ACCENTS else sign


class _Reader:
    """Reads one formula from left to right; each method returns LaTeX of what it took."""

    def __init__(self, formula: str, names: tuple[str, ...]):
        # One sign a letter with its accent is another one than a letter and an accent.
        self.formula = formula = re.sub("[^\0-\x7f]", lambda sign: _accented(sign[0]), formula)
        long = sorted((name for name in names if "_" in name), key=len, reverse=True)
        either = "|".join(map(re.escape, long)) or r"(?!)"
        self.tokens: list[tuple[str, str]] = []
        for piece in re.split(rf"\b({either})\b", formula):
            if piece in long:
                self.tokens.append(("name", piece))
            else:
                found = TOKEN.finditer(piece)
                self.tokens += [(token.lastgroup or "", token[0]) for token in found]
        self.at = 0

    def all(self) -> str:
        said = self.sequence("", script=False)
        if self.at < len(self.tokens):
            raise self.wrong(f"{self.text!r} closes nothing")
        return said

    @property
    def kind(self) -> str:
        return self.tokens[self.at][0] if self.at < len(self.tokens) else "end"

    @property
    def text(self) -> str:
        return self.tokens[self.at][1] if self.at < len(self.tokens) else ""

    def wrong(self, what: str) -> ValueError:
        return ValueError(f"the formula {self.formula!r} cannot be read: {what}")

    def take(self) -> str:
        self.at += 1
        return self.tokens[self.at - 1][1]

    def sequence(self, until: str, *, script: bool) -> str:
        """Everything up to the sign `until`, which is left; to the end if it is empty."""
        said: list[str] = []
        while self.kind != "end" and self.text not in (until or ")", ")", "]", "}", "⌋"):
            if self.kind == "space":
                self.take()
            else:
                said.append(self.scripted(script=script, after=said[-1] if said else ""))
        return "".join(said)

    def scripted(self, *, script: bool, after: str) -> str:
        """One atom with what stands above, below and behind it."""
        large = self.text in LARGE
        word = self.text if self.kind == "word" else ""
        base = self.atom(script=script, after=after)
        below, above = "", ""
        while True:
            if self.text == "'":
                self.take()
                above += r"\prime "
            elif self.text == "_":
                self.take()
                below += self.argument()
            elif self.text == "^":
                self.take()
                above += self.argument()
            elif self.kind == "sign" and self.text in BELOW:
                below += BELOW[self.take()]
            elif self.kind == "sign" and self.text in ABOVE:
                above += ABOVE[self.take()]
            elif self.text in ACCENTS:
                base = f"{ACCENTS[self.take()]}{{{base}}}"
            else:
                break
        return self.put(base, below, above, large=large, word=word)

    def put(self, base: str, below: str, above: str, *, large: bool, word: str) -> str:
        limits = r"\limits" if large else ""
        if word in ("mean", "max", "min", "sum") and below:
            base, below = rf"\underset{{{below}}}{{\text{{{word}}}}}", ""
        said = base + limits * bool(below or above)
        said += f"_{{{below}}}" if below else ""
        said += f"^{{{above}}}" if above else ""
        space = word and len(word) > 1 and self.kind == "space" and not self.before_sign()
        return said + (r"\;" if space else " ")

    def before_sign(self) -> bool:
        """Whether a relation or an operator, which has space of its own, comes next."""
        following = self.tokens[self.at + 1][1] if self.at + 1 < len(self.tokens) else ""
        return following in tuple("=+-<>≤≥≠∈/·") or not following

    def argument(self) -> str:
        """What stands below or above: {...}, or a run of letters and digits."""
        if self.text == "{":
            return self.fenced(script=True)
        if self.kind == "word":
            return self.index(self.take()) + (self.take() if self.kind == "number" else "")
        if self.kind == "number" or self.text in GREEK:
            return self.atom(script=True, after="")
        raise self.wrong(f"nothing stands after {self.tokens[self.at - 1][1]!r}")

    def index(self, word: str) -> str:
        several = set(word) <= set("aijklmnpqry") and len(set(word)) == len(word) == 3
        return " ".join(word) if len(word) <= 2 or several else rf"\text{{{word}}}"

    def fenced(self, *, script: bool) -> str:
        """The inside of a bracket, whose two signs are taken."""
        opened = self.take()
        inside = self.sequence(CLOSING[opened], script=script)
        if self.text != CLOSING[opened]:
            raise self.wrong(f"{opened!r} does not close")
        self.take()
        return inside

    def atom(self, *, script: bool, after: str) -> str:
        kind, text = self.kind, self.text
        if kind == "word":
            return self.words(script=script, after=after)
        if kind == "name":
            return rf"\text{{{self.take()}}}".replace("_", " ")
        if text in ("|", "‖") and (size := self.bars(text)):
            return self.between_bars(text, size, script=script)
        if text in CLOSING:
            return self.bracket(script=script, after=after)
        if text == "√":
            return self.root(script=script)
        self.take()
        if kind == "number":
            return text
        if kind == "dots":
            return r"\dots "
        for known in (LARGE, GREEK, SIGNS):
            if text in known:
                return known[text] + (" " if known is GREEK else "")
        raise self.wrong(f"{text!r} is no sign of it")

    def words(self, *, script: bool, after: str) -> str:
        """A letter, a function, or words up to the next sign."""
        word = self.take()
        if word in FUNCTIONS:
            return rf"\{word} "
        if (len(word) == 1 and not (script and word == "a" and self.kind == "space")) or (
            script and word not in JOINING and len(word) == 2
        ):
            return " ".join(word)
        if word == "in":
            return r"\in "
        said = [word]
        while self.kind == "space" and self.at + 1 < len(self.tokens):
            kind, following = self.tokens[self.at + 1]
            next_sign = self.tokens[self.at + 2][1] if self.at + 2 < len(self.tokens) else ""
            whole = len(following) > 2 or following in JOINING
            if kind != "word" or not whole or following in FUNCTIONS or next_sign in ("_", "("):
                break
            self.take()
            said.append(self.take())
        # Between a letter and a word stands a space, as between two words.
        apart = r"\;" if re.search(r"(^|[ }])(\w|\})$", after.strip()) else ""
        return rf"{apart}\text{{{' '.join(said)}}}"

    def bars(self, bar: str) -> int:
        """How many tokens lie between this bar and the next one on the same level; 0: none."""
        depth = 0
        for place in range(self.at + 1, len(self.tokens)):
            text = self.tokens[place][1]
            depth += (text in CLOSING) - (text in CLOSING.values())
            if depth < 0:
                return 0
            if text == bar and depth == 0:
                return place - self.at - 1
        return 0

    def between_bars(self, bar: str, size: int, *, script: bool) -> str:
        self.take()
        end, said = self.at + size, ""
        while self.at < end:
            if self.kind == "space":
                self.take()
            else:
                said += self.scripted(script=script, after=said)
        self.take()
        sign = r"\Vert " if bar == "‖" else "|"
        return rf"\left{sign}{said}\right{sign}"

    def bracket(self, *, script: bool, after: str) -> str:
        opened = self.text
        inside = self.fenced(script=script)
        divided = re.fullmatch(r"(\\?\w+ ?|\d+) *\\,/\\, *(\\?\w+ ?|\d+) *", inside)
        called = re.search(r"\\(log|exp|cos|sin|text\{\w+\}) *(\\;)?$", after)
        if divided and opened == "(" and not called:
            return rf"\frac{{{divided[1]}}}{{{divided[2]}}}"
        left, right = FENCES[opened]
        return rf"\left{left}{inside}\right{right}"

    def root(self, *, script: bool) -> str:
        self.take()
        if self.text == "(":
            return rf"\sqrt{{{self.fenced(script=script)}}}"
        return rf"\sqrt{{{self.atom(script=script, after='')}}}"
