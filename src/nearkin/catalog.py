"""What a recipe can name: the kinds, their members, what each takes; recipes are read in config."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib
import importlib.resources
import inspect
import math
import pkgutil
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field, InstanceOf, TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError

REQUIRED: Any = inspect.Parameter.empty
Schedule = Callable[[int], float]
_OF_TOTAL = Callable[[int], Schedule]


class RecipeError(ValueError):
    """A recipe, a setting or a name is wrong; one sentence says what, where and what instead."""


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """The nearest known name as a question, or all known names where none is near."""
    names = sorted(known)
    if not names:
        return "there is none to choose from"
    near = difflib.get_close_matches(str(word).lower(), names, 1)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names)}"


@dataclass(frozen=True)
class Kind:
    """What a recipe can name. "module:Name" spells a class or type that is looked up late.

    name        as in a recipe: "loss"
    where       the package or module whose members are scanned
    plural      the name of the whole list: "losses"
    noun        how a sentence calls it; `name` if empty
    base        the class that members extend; empty where members are functions
    returns     what member functions return, spelled or as a type; None where members are classes
    first       the first parameter of member functions: its type spelled, or its own name
    waits       settings are bound and the first parameters stay open: whoever uses it calls it
    open        how many parameters stay open
    annotation  the type of an argument that takes a member, where it does not follow from the above
    names       the function in `where` that lists names, for a kind that is named and never built
    """

    name: str
    where: str
    plural: str
    noun: str = ""
    base: str = ""
    returns: Any = None
    first: str = ""
    waits: bool = False
    annotation: Any = None
    names: str = ""
    open: int = 1

    def __str__(self) -> str:
        return self.noun or self.name


_TENSOR, _AUGMENT, _CROP = "torch:Tensor", "nearkin.augment", "nearkin.crops:Crop"
_INFORMATION = "nearkin.information"
_PAIRS, _TERMS, _OPTIM = "nearkin.core:Comparison", "nearkin.core:Terms", "torch.optim:Optimizer"

_ALL = (
    Kind("recipe", "nearkin.recipes", "recipes"),
    Kind("data", "nearkin.data", "datasets", "data set", returns="nearkin.data.base:Splits"),
    Kind("encoder", "nearkin.encoders", "encoders", base="nearkin.encoders.base:Encoder"),
    Kind("sampler", "nearkin.sample", "samplers", base="nearkin.sample:Sampler"),
    Kind("objective", "nearkin.objectives", "objectives", base="nearkin.objectives.base:Objective"),
    Kind("critic", "nearkin.objectives.critics", "critics", base="nearkin.objectives.base:Critic"),
    Kind("method", "nearkin.methods", "methods", base="nearkin.methods.base:Method"),
    Kind("compare", "nearkin.compare", "compares", "comparison", base="nearkin.compare:Compare"),
    Kind("mining", "nearkin.mining", "mining", returns=_PAIRS, first=_PAIRS, waits=True),
    Kind("loss", "nearkin.losses", "losses", returns=_TERMS, first=_PAIRS, waits=True),
    Kind("optimizer", "nearkin.optimizers", "optimizers", "", "", _OPTIM, "parameters", True),
    Kind("schedule", "nearkin.schedules", "schedules", "", "", Schedule, "total", True, _OF_TOTAL),
    Kind(
        *("augmentation", _AUGMENT, "augmentations", "", "", _TENSOR, "pictures", True),
        *(f"{_AUGMENT}:Augmentation", "", 2),
    ),
    Kind(*("crop", "nearkin.crops", "crops", "", "", _TENSOR, "picture", True, _CROP), open=3),
    Kind("metric", "nearkin.evaluation", "metrics", names="metric_names"),
    Kind(
        *("estimator", _INFORMATION, "estimators", "", ""),
        *(f"{_INFORMATION}.base:Information", f"{_INFORMATION}.samples:Samples", True),
    ),
)
KINDS: dict[str, Kind] = {kind.name: kind for kind in _ALL}


def kind_named(name: str | Kind) -> Kind:
    """The kind of this name, singular or plural; raises RecipeError with the nearest one."""
    if isinstance(name, Kind):
        return name
    known = {kind.plural: kind for kind in KINDS.values()} | KINDS
    if name not in known:
        raise RecipeError(f"there is no kind {name!r}; {did_you_mean(name, known)}")
    return known[name]


@functools.cache
def scan(kind: Kind) -> Mapping[str, Callable[..., Any]]:
    """Every public member of a kind by its name: the folder is the registry.

    Raises RecipeError where two members have one name.
    """
    found: dict[str, Any] = {}
    for module in _modules(kind.where):
        for key, thing in vars(module).items():
            if key.startswith("_") or getattr(thing, "__module__", None) != module.__name__:
                continue
            name = _class_name(thing, kind) if kind.base else _function_name(thing, kind)
            if name and found.setdefault(name, thing) is not thing:
                both = f"{found[name].__module__} and {module.__name__}"
                raise RecipeError(
                    f"there are two of the name {name!r}, in {both}; rename one {kind}"
                )
    return types.MappingProxyType(dict(sorted(found.items())))


def _modules(where: str) -> list[types.ModuleType]:
    """The module and the public modules in it; none at all where there is no such module."""
    try:
        root = importlib.import_module(where)
    except ModuleNotFoundError as error:
        if error.name and f"{where}.".startswith(f"{error.name}."):
            return []
        raise
    inner = [found.name for found in pkgutil.iter_modules(getattr(root, "__path__", []))]
    public = [f"{where}.{name}" for name in inner if not name.startswith("_")]
    return [root, *map(importlib.import_module, public)]


def _class_name(thing: Any, kind: Kind) -> str | None:
    base = loaded(kind.base)
    if base is None or not inspect.isclass(thing) or not issubclass(thing, base):
        return None
    # An inherited name is its parent's: a class without a name of its own is abstract.
    name = vars(thing).get("name")
    return name if isinstance(name, str) and thing is not base else None


def _function_name(thing: Any, kind: Kind) -> str | None:
    if kind.returns is None or not inspect.isfunction(thing):
        return None
    hints = typing.get_type_hints(thing)
    first = next(iter(inspect.signature(thing).parameters), "")
    if ":" in kind.first:
        begins = _is_a(hints.get(first), loaded(kind.first))
    else:
        begins = kind.first in ("", first)
    fits = begins and _is_a(hints.get("return"), loaded(kind.returns))
    return thing.__name__ if fits else None


def loaded(spelled: Any) -> Any:
    """What "module:Name" spells; None while its module is not loaded: nothing can be one then."""
    if not isinstance(spelled, str):
        return spelled
    module, name = spelled.split(":")
    return getattr(sys.modules.get(module), name, None)


def _is_a(hint: Any, wanted: Any) -> bool:
    if inspect.isclass(hint) and inspect.isclass(wanted):
        return issubclass(hint, wanted)
    return wanted is not None and _shape(hint) == _shape(wanted)


def _shape(hint: Any) -> Any:
    """An annotation in a form in which typing.Callable and collections.abc.Callable are equal."""
    parts = hint if isinstance(hint, list) else typing.get_args(hint)
    return (typing.get_origin(hint), *map(_shape, parts)) if parts else hint


def constructor(
    kind: Kind, name: str, where: str, *, trust_code: bool = False
) -> Callable[..., Any]:
    """The member of a kind by its name, or a user's own code by `package.module:Name` if trusted.

    Raises RecipeError that names `where`, the full dotted path in the recipe.
    """
    if ":" in name:
        return _own_code(name, where, trust_code=trust_code)
    known = scan(kind)
    if name not in known:
        raise RecipeError(f"{where}: there is no {kind} {name!r}; {did_you_mean(name, known)}")
    return known[name]


def _own_code(name: str, where: str, *, trust_code: bool) -> Callable[..., Any]:
    if not trust_code:
        raise RecipeError(
            f"{where}: {name!r} is code from outside nearkin, which runs only with --trust-code "
            f"(in Python trust_code=True); give it only for code that you know"
        )
    path, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(path)
    except (ImportError, SyntaxError, TypeError, ValueError) as error:
        raise RecipeError(
            f"{where}: the module of {name!r} cannot be imported ({error}); "
            f"is its folder on PYTHONPATH?"
        ) from error
    thing = getattr(module, attribute, None)
    if not callable(thing):
        known = [key for key, value in vars(module).items() if callable(value) and key[0] != "_"]
        raise RecipeError(
            f"{where}: module {path!r} has no {attribute!r} to call; "
            f"{did_you_mean(attribute, known)}"
        )
    return thing


@dataclass(frozen=True)
class Slot:
    """What one argument takes: a plain value of `annotation`, or members of `kind`.

    shape     whether it takes one member of the kind, a list of them or a dict of them
    default   REQUIRED where the argument has none
    optional  whether null is allowed for a kind
    record    a class with a fixed set of settings of its own, written without its name
    """

    annotation: Any = Any
    default: Any = REQUIRED
    kind: Kind | None = None
    shape: typing.Literal["one", "list", "dict"] = "one"
    optional: bool = False
    record: Callable[..., Any] | None = None


def slots_of(make: Callable[..., Any], kind: Kind | None = None) -> dict[str, Slot]:
    """The settings of a constructor by name, without the one that a waiting function keeps open."""
    parameters = list(inspect.signature(make).parameters.values())
    called = make.__init__ if inspect.isclass(make) else make
    hints = typing.get_type_hints(called, include_extras=True)
    if kind is not None and kind.waits:
        parameters = parameters[kind.open :]
    fields = dataclasses.fields(make) if dataclasses.is_dataclass(make) else ()
    made = {f.name: f.default_factory for f in fields if callable(f.default_factory)}
    slots = {}
    for parameter in parameters:
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            name = parameter.name
            default = made[name]() if name in made else parameter.default
            slots[name] = _slot(hints.get(name, Any), default)
    return slots


def _slot(hint: Any, default: Any) -> Slot:
    inner, optional = _without_none(hint)
    origin, arguments = typing.get_origin(inner), typing.get_args(inner)
    if kind := _kind_of(inner):
        return Slot(hint, default, kind, "one", optional)
    if origin in (list, Sequence) and (kind := _kind_of(arguments[0])):
        return Slot(hint, default, kind, "list", optional)
    if origin in (dict, Mapping) and (kind := _kind_of(arguments[1])):
        return Slot(hint, default, kind, "dict", optional)
    return Slot(hint, default)


def _without_none(hint: Any) -> tuple[Any, bool]:
    if typing.get_origin(hint) not in (typing.Union, types.UnionType):
        return hint, False
    left = [part for part in typing.get_args(hint) if part is not type(None)]
    optional = len(left) < len(typing.get_args(hint))
    return (left[0], optional) if len(left) == 1 else (hint, optional)


def _kind_of(hint: Any) -> Kind | None:
    """The kind that an annotation stands for."""
    for kind in KINDS.values():
        if _shape(hint) == _shape(_annotation(kind)):
            return kind
    return None


def _annotation(kind: Kind) -> Any:
    """The base class, the alias of what waits, or what functions return; None while not loaded."""
    if kind.annotation is not None or kind.base:
        return loaded(kind.annotation or kind.base)
    returns = loaded(kind.returns)
    if not kind.waits:
        return returns
    first = loaded(kind.first) if ":" in kind.first else None
    return Callable[[first], returns] if first and returns else None


def is_built(value: Any, kind: Kind) -> bool:
    """Whether a value is a member of a kind already, not the description of one."""
    if isinstance(value, str | Mapping) or value is None:
        return False
    if kind.waits:
        return callable(value)
    wanted = loaded(kind.base or kind.returns)
    return inspect.isclass(wanted) and isinstance(value, wanted)


def checked(value: Any, annotation: Any, where: str) -> Any:
    """The value as its annotation wants it: lax for float, strict for int, bool and str, finite.

    Raises RecipeError with the dotted path of the part that is wrong, what was seen and expected.
    """
    try:
        fitting = _adapter(annotation).validate_python(value)
    except ValidationError as error:
        raise RecipeError(_wrong(error, value, where)) from None
    if not _is_finite(fitting):
        raise RecipeError(f"{where}: expected finite numbers, got {value!r}")
    return fitting


def _adapter(annotation: Any) -> TypeAdapter[Any]:
    # A dataclass has a configuration of its own, and pydantic refuses a second one.
    own = dataclasses.is_dataclass(annotation)
    config = None if own else ConfigDict(arbitrary_types_allowed=True)
    return TypeAdapter(_strict(annotation), config=config)


def _strict(annotation: Any) -> Any:
    """The annotation with the strictness of a recipe written into each part."""
    if annotation is float:
        return Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]
    if annotation in (int, bool, str):
        return Annotated[annotation, Field(strict=True)]
    if dataclasses.is_dataclass(annotation):
        return InstanceOf[annotation]
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return Annotated[_strict(arguments[0]), *arguments[1:]]
    if origin in (typing.Union, types.UnionType):
        return typing.Union[tuple(map(_strict, arguments))]  # noqa: UP007
    if origin in (list, tuple, dict, Sequence, Mapping):
        return types.GenericAlias(origin, tuple(map(_strict, arguments)))
    return annotation


def _number(value: Any) -> Any:
    if isinstance(value, bool):
        raise PydanticCustomError("float_type", "a truth value is no number")
    # Floats of numpy are floats to pydantic, but not to YAML.
    return float(value) if isinstance(value, float) else value


_EXPECTED = {
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "int_type": "an integer",
    "bool_type": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "{{name: value}}",
    "none_required": "null",
    "literal_error": "{expected}",
    "greater_than_equal": "at least {ge}",
    "greater_than": "more than {gt}",
    "less_than_equal": "at most {le}",
    "less_than": "less than {lt}",
}


def _wrong(error: ValidationError, value: Any, where: str) -> str:
    """One sentence of what pydantic found; where a union failed, all that may be written there."""
    details = [d for d in error.errors() if d["type"] != "is_instance_of"] or error.errors()
    for step in details[0]["loc"]:
        # Between the keys of containers pydantic puts names of union members; those are no path.
        inside: Any = dict(enumerate(value)) if isinstance(value, list | tuple) else value
        if isinstance(inside, Mapping) and step in inside:
            where, value = f"{where}.{step}", inside[step]
    contexts = [detail.get("ctx", {}) for detail in details]
    forms = [_EXPECTED.get(detail["type"], detail["msg"]) for detail in details]
    wanted = dict.fromkeys(map(str.format_map, forms, contexts))
    choices = re.findall(r"'([^']*)'", " ".join(each.get("expected", "") for each in contexts))
    near = difflib.get_close_matches(str(value), choices, 1)
    meant = f"; did you mean {near[0]!r}?" if near else ""
    return f"{where}: expected {' or '.join(wanted)}, got {value!r}{meant}"


def _is_finite(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(_is_finite, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


# What the command line lists


@dataclass(frozen=True)
class Entry:
    """One member as a list shows it: what it is, where it comes from, what it takes by default."""

    name: str
    kind: str
    summary: str
    source: str
    signature: str
    doc: str
    module: str


def members(kind_name: str) -> list[Entry]:
    """All members of a kind (singular or plural), by name; RecipeError if there is no such kind."""
    kind = kind_named(kind_name)
    if kind.name == "recipe":
        return [_recipe_entry(name, kind) for name in recipe_files()]
    if kind.names:
        rows = names_of(kind).items()
        return [Entry(key, kind.name, *told, key, told[0], kind.where) for key, told in rows]
    return [_entry(name, make, kind) for name, make in scan(kind).items()]


def find(name: str) -> list[Entry]:
    """The members of this name, of whatever kind; raises RecipeError with the nearest name."""
    entries = [entry for kind in KINDS for entry in members(kind)]
    found = [entry for entry in entries if entry.name in (name, with_any_k(name))]
    if not found:
        known = {entry.name for entry in entries}
        raise RecipeError(f"there is nothing named {name!r}; {did_you_mean(name, known)}")
    return found


def names_of(kind: Kind) -> dict[str, tuple[str, str]]:
    """What a kind lists itself (the metrics): name to summary and source; none without a module."""
    listed = [getattr(module, kind.names)() for module in _modules(kind.where)[:1]]
    return {name: (summary, source) for rows in listed for name, summary, source in rows}


def with_any_k(metric: str) -> str:
    """`recall@5` as `recall@K`, the form in which a family of metrics may be listed."""
    return re.sub(r"@[1-9]\d*$", "@K", metric)


def recipe_files() -> dict[str, Any]:
    """The recipes that come with the package, as readable resources, by name."""
    package, _, folder = KINDS["recipe"].where.rpartition(".")
    root = importlib.resources.files(package).joinpath(folder)
    files = sorted(root.iterdir(), key=lambda file: file.name) if root.is_dir() else ()
    return {file.name[:-5]: file for file in files if file.name.endswith(".yaml")}


def _entry(name: str, make: Callable[..., Any], kind: Kind) -> Entry:
    doc = inspect.cleandoc(vars(make).get("__doc__") or getattr(make, "__doc__", None) or "")
    settings = ", ".join(_spelled(key, slot) for key, slot in slots_of(make, kind).items())
    return Entry(
        name=name,
        kind=kind.name,
        summary=doc.partition("\n")[0],
        source=_reference(doc) or make.__module__,
        signature=f"{name}({settings})",
        doc=doc,
        module=make.__module__,
    )


def _reference(doc: str) -> str:
    """The first parenthesis in the first three lines with a year or the number of an equation."""
    head = " ".join(doc.splitlines()[:3])
    found = re.search(r"\(([^()]*(?:\b(?:18|19|20)\d\d\b|\b[Ee]qs?\. ?\(?\d)[^()]*)\)", head)
    return found.group(1) if found else ""


def _spelled(key: str, slot: Slot) -> str:
    if slot.kind is None:
        hint = inspect.formatannotation(slot.annotation).replace("typing.", "")
    else:
        hint = slot.kind.name if slot.shape == "one" else f"{slot.shape} of {slot.kind.name}"
    said = key if slot.annotation is Any else f"{key}: {hint.replace('torch.Tensor', 'Tensor')}"
    return said if slot.default is REQUIRED else f"{said} = {slot.default!r}"


def _recipe_entry(name: str, kind: Kind) -> Entry:
    text = recipe_files()[name].read_text(encoding="utf-8")
    first = text.lstrip().partition("\n")[0]
    if first.startswith("#"):
        summary = re.sub(r"\s{2,}", "; ", first.lstrip("# ").rstrip())
    else:
        about = re.search(r"^about:\s*(.*)$", text, re.MULTILINE)
        summary = about.group(1).strip("'\" ") if about else ""
    reference = _reference(summary) or kind.where
    return Entry(name, kind.name, summary, reference, f"nearkin train {name}", text, kind.where)
