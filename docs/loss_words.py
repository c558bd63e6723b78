"""Formulas and words of docstrings in the language of a page: HTML with MathML, and Markdown."""

import html
import re

from docstrings import markdown
from loss_docstrings import PART, Told
from loss_formulas import mathml


def formula(told: Told, names: tuple[str, ...]) -> str:
    """The formulas as HTML: a part's name beside its own side."""
    rows = []
    for left, right in told.formulas:
        if not left:
            rows.append(f'<p class="near-with">{_words(right, names)}</p>')
            continue
        equation, *rest = _clauses(right)
        label, symbol = (left, "") if PART.match(left) else ("", left)
        side = mathml(f"{symbol} = {equation}", names, block=True)
        rows.append(f'<div class="near-part"><span>{label}</span>{side}</div>')
        if rest:
            rows.append(f'<p class="near-with">{_words("".join(rest[1:]).strip(), names)}</p>')
    return f'<div class="near-formula">{"".join(rows)}</div>'


def _words(text: str, names: tuple[str, ...]) -> str:
    """Words as HTML, the formulas in them as MathML."""
    return "".join(
        html.escape(said, quote=False) if not span else mathml(said, names)
        for said, span in spans(text, names)
    )


OPERATORS = {"=", "∝", "+", "-", "−", "/", "·", "×", "<", ">", "≤", "≥", "≠", "∈", "→", ".."}
CALLED = ("log", "cos", "sin", "tan", "exp", "min", "max", "mean")
WORD = re.compile(
    r"[A-Za-z]{2,}(?:['/-][A-Za-z]+)*|(?!(?:cos|max|min|mean|log|tan)_)[a-z]{2,}(?:_[a-z]{2,})+"
    r"|[a-z]\w{2,}=.*"
)
SYMBOL = re.compile(r"[_^{}²₊⁺⁻Σ√α-ωΓ-Ω'=|·/]|^\W*(?:[b-zA-HJ-Z]|\d[\d.]*|\d*[a-z])\W*$")
STRONG = re.compile(r"[_^{Σ√]|(?<=[\w)]) [=∝] (?=\S)")


def spans(text: str, names: tuple[str, ...] = ()) -> list[tuple[str, bool]]:
    """Words and formulas in turn, each with whether it is a formula."""
    tokens = _tokens(text)
    kinds = [_is_symbol(token) for token in tokens]
    for place, token in enumerate(tokens):
        beside = tokens[max(place - 2, 0) : place + 3 : 2]
        operated = any(other in OPERATORS for other in beside if other != token)
        assigned = tokens[place + 2 : place + 3] in (["="], ["∝"])
        after = place > 1 and tokens[place - 2] in CALLED
        named = token.rstrip(".") in names
        kinds[place] |= (operated and (named or assigned)) or (named and after)
    for place in reversed(range(len(tokens) - 2)):
        kinds[place] |= tokens[place] in CALLED and kinds[place + 2]
    said: list[tuple[str, bool]] = []
    for place, token in enumerate(tokens):
        inside = token == " " and 0 < place < len(tokens) - 1
        span = kinds[place] or (inside and kinds[place - 1] and kinds[place + 1])
        if said and said[-1][1] == span:
            said[-1] = (said[-1][0] + token, span)
        else:
            said.append((token, span))
    whole: list[tuple[str, bool]] = []
    for token, span in said:
        stop = span and re.search(r"(?<!\.)\.$", token)
        token = token[:-1] if stop else token
        whole += [(token, span and _reads(token, names)), *([(".", False)] if stop else [])]
    return whole


def _tokens(text: str) -> list[str]:
    """Pieces between blanks that stand in no bracket, blanks, and the signs that end a clause."""
    pieces, depth = [""], 0
    for sign in text:
        depth += (sign in "([{") - (sign in ")]}")
        if depth <= 0 and sign in " ,;:":
            pieces += [sign, ""]
        else:
            pieces[-1] += sign
    return [piece for piece in pieces if piece]


def _is_symbol(token: str) -> bool:
    """Whether a piece is a formula by itself, not a word, a hyphenated one or words in brackets."""
    if token in " ,;:" or "`" in token or re.search(r"[A-Za-z]{3,},? [A-Za-z]{2,}", token):
        return False
    word = token.strip(".()\"'")
    if WORD.fullmatch(word) or token in ("a", "A", "I"):
        return False
    return token in OPERATORS or bool(SYMBOL.search(token))


def _reads(span: str, names: tuple[str, ...]) -> bool:
    """Whether the language of formulas knows a piece, one that is more than an operator."""
    if span.strip() in OPERATORS or not span.strip():
        return False
    try:
        mathml(span, names)
    except ValueError:
        return False
    return True


def prose(text: str, names: tuple[str, ...] = ()) -> str:
    """Plain words as Markdown: signs that Markdown would read are kept as they are, formulas with
    indices or sums become MathML."""
    aligned = markdown(text)
    if aligned != text:
        return aligned
    said = []
    for piece in re.split(r"(`[^`]*`)", text):
        if piece[:1] == "`":
            said.append(piece)
            continue
        for part, span in spans(piece.replace("\n", " "), names):
            whole = span and STRONG.search(part)
            said.append(mathml(part, names) if whole else _kept(part))
    whole = "".join(said)
    # Markdown ends the paragraph behind a formula that begins it.
    return f"<span></span>{whole}" if whole.startswith("<math") else whole


def _kept(text: str) -> str:
    return re.sub(r"([*_<\[\\|])", r"\\\1", text)


def _clauses(text: str) -> list[str]:
    """Words between commas, semicolons and colons that stand in no bracket, and these signs."""
    pieces = [""]
    for token in _tokens(text):
        pieces += [token, ""] if token in ",;:" else []
        pieces[-1] += "" if token in ",;:" else token
    return pieces
