"""A recipe read, changed, checked, built and written; what it can name stands in catalog."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, get_args

import yaml
from pydantic import Field

from nearkin.catalog import (
    KINDS,
    REQUIRED,
    Kind,
    RecipeError,
    Slot,
    checked,
    constructor,
    did_you_mean,
    is_built,
    kind_named,
    loaded,
    names_of,
    recipe_files,
    scan,
    slots_of,
    with_any_k,
)
from nearkin.settings import Train


def _recipe_slots() -> dict[str, Slot]:
    """The keys of a recipe, in the order in which they are written."""
    return {
        "about": Slot(str | None, None),
        "paper": Slot(dict[str, Any] | None, None),
        "seed": Slot(Annotated[int, Field(ge=0)], 0),
        "data": Slot(kind=KINDS["data"]),
        "encoder": Slot(kind=KINDS["encoder"]),
        "sampler": Slot(kind=KINDS["sampler"]),
        "objective": Slot(kind=KINDS["objective"], default=None, optional=True),
        "method": Slot(kind=KINDS["method"], default=None, optional=True),
        "optim": Slot(kind=KINDS["optimizer"], shape="dict"),
        "train": Slot(record=Train, default={}),
        "evaluate": Slot(list[str], ["recall@1", "map@r"]),
    }


def load_recipe(name_or_path: str | Path) -> dict[str, Any]:
    """The recipe of this bundled name or in this YAML file, as it is written there.

    A bundled name wins over a file of that name. Raises RecipeError: unknown, unreadable, no YAML.
    """
    name, bundled = str(name_or_path), recipe_files()
    file = bundled.get(name) or Path(name)
    if not file.is_file():
        nearest = did_you_mean(Path(name).stem, bundled)
        what = "is a folder, not a recipe" if file.is_dir() else "is no recipe and no file"
        raise RecipeError(f"{name!r} {what}; {nearest}")
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"the recipe {name!r} cannot be read as text: {error}") from error
    recipe = _parse(text, f"recipe {name!r}")
    if not isinstance(recipe, dict):
        raise RecipeError(f"recipe {name!r} must hold 'key: value' lines, not {_said(recipe)}")
    return recipe


def dump(recipe: Mapping[str, Any]) -> str:
    """YAML that reads back as an equal recipe, keys in order; RecipeError if it holds an object."""
    form: dict[str, Any] = {"sort_keys": False, "width": 100}
    try:
        text = yaml.safe_dump(_plain(recipe), allow_unicode=True, **form)
        # PyYAML writes these line breaks of Unicode as they are, and reads them back as spaces.
        return (
            yaml.safe_dump(_plain(recipe), **form) if set("\x85\u2028\u2029") & set(text) else text
        )
    except yaml.representer.RepresenterError as error:
        thing = f"{type(error.args[-1]).__name__} was given as an object"
        raise RecipeError(f"{thing}; only names and plain values can be written") from None


def _parse(text: str, source: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise RecipeError(f"{source}{line}: {error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise RecipeError(f"{source}: {str(error).splitlines()[0]}") from None
    except RecursionError:
        raise RecipeError(f"{source} is nested too deep to be read") from None


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses traps: keys said twice, aliases. Dates stay text."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [rule for rule in rules if rule[0] != "tag:yaml.org,2002:timestamp"]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            problem = "a recipe has no aliases (*name); write the value out"
            raise yaml.MarkedYAMLError(None, None, problem, self.peek_event().start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for i, key in enumerate(keys):
            if key in keys[:i]:
                problem = f"the key {key!r} is said twice"
                raise yaml.MarkedYAMLError(None, None, problem, node.value[i][0].start_mark)
        return super().construct_mapping(node, deep)


# The whole recipe


def resolve(
    recipe: Mapping[str, Any],
    overrides: Sequence[str] | Mapping[str, Any] = (),
    *,
    trust_code: bool = False,
) -> dict[str, Any]:
    """The recipe after its overrides, every name and value checked, as plain data, not built.

    recipe      as `load_recipe` gives it; values may also be objects that are built already
    overrides   "dotted.key=value" texts (values are YAML), or {"dotted.key": value}
    trust_code  whether `package.module:Name` may import a user's own code

    Raises RecipeError with the full dotted path and the nearest known name.
    """
    changed = dict(_as_settings(recipe, "a recipe"))
    by_key = isinstance(overrides, Mapping)
    for key, value in overrides.items() if by_key else map(_change, overrides):
        changed = _set_in_settings(_recipe_slots(), changed, key, value, "", trust_code)
    return _plain(_read_recipe(changed, trust_code))


def complete(recipe: Mapping[str, Any], *, trust_code: bool = False) -> dict[str, Any]:
    """The resolved recipe with every default written out, in the order of the signatures."""
    full = _with_defaults(_recipe_slots(), _read_recipe(recipe, trust_code))
    return _plain({key: _completed(part) for key, part in full.items() if part is not None})


def build(
    node: Any, kind: str | Kind, facts: Mapping[str, Any], where: str, *, trust_code: bool = False
) -> Any:
    """What a node of a recipe describes: an object, or for what waits (loss, mining) a function.

    node   `name`, `{name: {argument: value}}`, `{name: null}`, or an object of the kind (kept)
    facts  values for required arguments of these names that the recipe leaves out
    where  the dotted path of the node, for messages

    Raises RecipeError, also where a constructor refuses its settings with a ValueError.
    """
    return _construct(_read(node, kind_named(kind), where, trust_code), facts)


def build_train(settings: Mapping[str, Any] | None, *, trust_code: bool = False) -> Train:
    """A recipe's `train` as `Train`, its schedule built."""
    return _construct(_read_slot(Slot(record=Train), settings, "train", trust_code), facts={})


def _read_recipe(recipe: Mapping[str, Any], trust_code: bool) -> dict[str, Any]:
    slots = _recipe_slots()
    given = {key: v for key, v in recipe.items() if v is not None or key not in slots}
    read = _read_settings(slots, given, "", trust_code)
    required = (key for key, slot in slots.items() if slot.default is REQUIRED)
    if missing := [repr(key) for key in required if key not in read]:
        raise RecipeError(f"the recipe needs {', '.join(missing)}")
    if ("objective" in read) == ("method" in read):
        raise RecipeError("a recipe has either an objective or a method; set the other to null")
    if "default" not in read["optim"]:
        raise RecipeError("optim needs 'default', the optimizer of every learner not named in it")
    train = {key: slot.default for key, slot in slots_of(Train).items()}
    train |= read["train"].settings if "train" in read else {}
    _check_metrics(read.get("evaluate", []), "evaluate")
    _check_metrics([train["select_by"]], "train.select_by")
    if train["early_stop"] is not None and train["select"] != "validation":
        counts = "train.early_stop counts epochs without improvement on validation"
        raise RecipeError(f"{counts}, so it needs train.select=validation, not {train['select']!r}")
    return read


def _check_metrics(named: Iterable[str], where: str) -> None:
    known = names_of(KINDS["metric"])
    for name in named:
        if with_any_k(name) in known and not name.endswith("@K"):
            continue
        # A family is listed as recall@K; the suggestion says the K that was asked for.
        k = name.partition("@")[2] if with_any_k(name) != name else "10"
        meant = [option.replace("@K", f"@{k}") for option in known]
        raise RecipeError(f"{where}: {name!r} is no metric; {did_you_mean(name, meant)}")


# Overrides: a new recipe in which one place has another value


def _change(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise RecipeError(f"{text!r} sets nothing; write key=value, for example train.epochs=3")
    return key.strip(), _parse(value, f"the value of {key.strip()}")


def _set_in_settings(
    slots: Mapping[str, Slot], settings: Any, path: str, value: Any, where: str, trust_code: bool
) -> dict[str, Any]:
    key, _, rest = path.partition(".")
    slot, place = _slot_named(key, slots, where), f"{where}.{key}".removeprefix(".")
    settings = _as_settings(settings, where)
    if rest:
        value = _set_inside(slot, settings.get(key), rest, value, place, trust_code)
    return {**settings, key: value}


def _set_inside(slot: Slot, held: Any, path: str, value: Any, where: str, trust_code: bool) -> Any:
    if slot.record is not None:
        return _set_in_settings(slots_of(slot.record), held, path, value, where, trust_code)
    if slot.kind is not None and slot.shape == "one":
        return _set_in_node(slot.kind, held, path, value, where, trust_code)
    if held is None and _is_plain(slot.default):
        held = slot.default
    parts = dict(enumerate(held)) if isinstance(held, list | tuple) else held
    if not isinstance(parts, Mapping | None):
        raise RecipeError(f"{where} is {_said(held)}, which has no {path!r} inside")
    parts = {str(key): part for key, part in (parts or {}).items()}
    key, rest = _key_and_rest(path, parts, slot.kind)
    if isinstance(held, list | tuple) and key not in parts:
        raise RecipeError(f"{where} has no {key!r}; its parts are numbered 0 to {len(parts) - 1}")
    if rest:
        inner = Slot() if slot.kind is None else replace(slot, shape="one")
        value = _set_inside(inner, parts.get(key), rest, value, f"{where}.{key}", trust_code)
    parts[key] = value
    return list(parts.values()) if isinstance(held, list | tuple) else parts


def _key_and_rest(path: str, parts: Mapping[str, Any], kind: Kind | None) -> tuple[str, str]:
    """Where the key of a part ends in a path: keys such as `encoder.head` hold dots themselves."""
    words, ends = path.split("."), range(1, path.count(".") + 1)
    named = [end for end in ends if kind is not None and words[end] in scan(kind)]
    inner = (Mapping, list, tuple, *((str,) if kind else ()))
    held = {end: parts.get(".".join(words[:end])) for end in reversed(ends)}
    there = [end for end, part in held.items() if isinstance(part, inner)]
    end = len(words) if path in parts else next(iter(named + there), len(words))
    return ".".join(words[:end]), ".".join(words[end:])


def _set_in_node(
    kind: Kind, node: Any, path: str, value: Any, where: str, trust_code: bool
) -> dict[str, Any]:
    if is_built(node, kind):
        raise RecipeError(f"{where} was given as an object; only the whole of it can be replaced")
    if node is None:
        name, settings = re.findall(r"[^:]*:\w+|[^.]*", path)[0], {}
    else:
        name, settings = _name_and_settings(node, kind, where)
    if path == name:
        return {name: value}
    slots = slots_of(constructor(kind, name, where, trust_code=trust_code), kind)
    if not path.startswith(f"{name}."):
        raise _misplaced(kind, name, slots, path, value, where)
    rest = path.removeprefix(f"{name}.")
    return {name: _set_in_settings(slots, settings, rest, value, f"{where}.{name}", trust_code)}


def _misplaced(
    kind: Kind, name: str, slots: Mapping[str, Slot], path: str, value: Any, where: str
) -> RecipeError:
    """A path that goes into another constructor than the one at this node."""
    head, *rest = path.split(".")
    if head in slots:
        return RecipeError(f"{where} is {name!r}; did you mean '{where}.{name}.{path}'?")
    if head not in scan(kind):
        meant = did_you_mean(head, [*scan(kind), *slots])
        return RecipeError(f"{where} is {name!r}, and there is no {kind} {head!r}; {meant}")
    for key in reversed(rest):
        value = {key: value}
    whole = yaml.safe_dump({head: value}, default_flow_style=True, width=10**6).strip()
    return RecipeError(f"{where} is {name!r}; to replace it by {head!r} set {where}='{whole}'")


# Reading: from names and plain values to checked calls


@dataclass(frozen=True)
class _Call:
    """A constructor and its checked settings, some of them calls themselves; not yet called."""

    where: str
    make: Callable[..., Any]
    settings: dict[str, Any]
    kind: Kind | None = None
    name: str = ""

    @property
    def slots(self) -> dict[str, Slot]:
        return slots_of(self.make, self.kind)


def _read(node: Any, kind: Kind, where: str, trust_code: bool) -> Any:
    if is_built(node, kind):
        return node
    name, settings = _name_and_settings(node, kind, where)
    make = constructor(kind, name, where, trust_code=trust_code)
    where = f"{where}.{name}"
    settings = _read_settings(slots_of(make, kind), settings, where, trust_code)
    return _Call(where, make, settings, kind, name)


def _name_and_settings(node: Any, kind: Kind, where: str) -> tuple[str, Mapping[str, Any]]:
    if isinstance(node, str):
        return node, {}
    if not isinstance(node, Mapping):
        raise RecipeError(
            f"{where}: expected one {kind}, as name or {{name: {{setting: value}}}}, "
            f"got {_said(node)}"
        )
    if len(node) != 1:
        names = ", ".join(map(str, node)) or "none"
        raise RecipeError(f"{where}: expected one {kind}, got {len(node)} ({names})")
    ((name, settings),) = node.items()
    if not isinstance(name, str):
        raise RecipeError(f"{where}: expected one {kind} by its name, got {_said(name)}")
    return name, _as_settings(settings, f"{where}.{name}")


def _as_settings(settings: Any, where: str) -> Mapping[str, Any]:
    if settings is None:
        return {}
    if not isinstance(settings, Mapping):
        raise RecipeError(f"{where}: expected {{setting: value}}, got {_said(settings)}")
    return settings


def _read_settings(
    slots: Mapping[str, Slot], settings: Mapping[str, Any], where: str, trust_code: bool
) -> dict[str, Any]:
    read = {}
    for key, value in settings.items():
        slot = _slot_named(key, slots, where)
        read[key] = _read_slot(slot, value, f"{where}.{key}".removeprefix("."), trust_code)
    return read


def _slot_named(key: Any, slots: Mapping[str, Slot], where: str) -> Slot:
    if key not in slots:
        instead = did_you_mean(key, slots) if slots else "it takes no settings"
        raise RecipeError(f"{where or 'a recipe'} takes no {key!r}; {instead}")
    return slots[key]


def _read_slot(slot: Slot, value: Any, where: str, trust_code: bool) -> Any:
    if slot.record is not None:
        settings = _as_settings(value, where)
        settings = _read_settings(slots_of(slot.record), settings, where, trust_code)
        return _Call(where, slot.record, settings)
    if slot.kind is None:
        return checked(value, slot.annotation, where)
    if value is None and slot.optional:
        return None
    if slot.shape == "one":
        return _read(value, slot.kind, where, trust_code)
    if slot.shape == "list" and isinstance(value, list | tuple):
        places = ((f"{where}.{i}", node) for i, node in enumerate(value))
        return [_read(node, slot.kind, place, trust_code) for place, node in places]
    if slot.shape == "dict" and isinstance(value, Mapping):
        places = ((key, f"{where}.{key}", node) for key, node in value.items())
        return {key: _read(node, slot.kind, place, trust_code) for key, place, node in places}
    form = "a list [...]" if slot.shape == "list" else "{name: ...}"
    raise RecipeError(
        f"{where}: expected {form} with one {slot.kind} in each place, got {_said(value)}"
    )


def _construct(value: Any, facts: Mapping[str, Any]) -> Any:
    if isinstance(value, list):
        return [_construct(part, facts) for part in value]
    if isinstance(value, dict):
        return {key: _construct(part, facts) for key, part in value.items()}
    return _call(value, facts) if isinstance(value, _Call) else value


def _call(call: _Call, facts: Mapping[str, Any]) -> Any:
    settings = {key: _construct(value, facts) for key, value in call.settings.items()}
    required = [key for key, slot in call.slots.items() if slot.default is REQUIRED]
    # A fact also stands in for a None: `classes` of a loss with one learned boundary a class.
    open_ = [
        k for k, slot in call.slots.items() if slot.default is REQUIRED or slot.default is None
    ]
    settings |= {k: facts[k] for k in open_ if settings.get(k) is None and k in facts}
    waits = call.kind is not None and call.kind.waits
    # A recipe cannot say a tensor: what takes one is bound later, by whoever owns the parameter.
    tensor = loaded("torch:Tensor") if waits else REQUIRED
    hints = {key: call.slots[key].annotation for key in required if key not in settings}
    missing = [repr(key) for key, hint in hints.items() if tensor not in (hint, *get_args(hint))]
    if missing:
        raise RecipeError(f"{call.where} needs {', '.join(missing)}, and no fact fills it in")
    if waits:
        return functools.partial(call.make, **settings)
    try:
        made = call.make(**settings)
    except RecipeError:
        raise
    except ValueError as error:
        raise RecipeError(f"{call.where}: {error}") from error
    if call.kind is not None and not is_built(made, call.kind):
        wanted = call.kind.base or call.kind.returns
        raise RecipeError(f"{call.where} made {type(made).__name__}, which is no {wanted}")
    return made


def _with_defaults(slots: Mapping[str, Slot], settings: Mapping[str, Any]) -> dict[str, Any]:
    """All settings that are given or have a default that a recipe can say, in the slots' order."""
    full = {}
    for key, slot in slots.items():
        if key in settings:
            full[key] = settings[key]
        elif slot.default is not REQUIRED and _is_plain(slot.default):
            # Read like a given value, so that completing twice changes nothing. What no recipe can
            # say, such as an infinite default, stays with the signature.
            with contextlib.suppress(RecipeError):
                full[key] = _read_slot(slot, slot.default, key, trust_code=False)
    return full


def _completed(value: Any) -> Any:
    if isinstance(value, _Call):
        settings = _with_defaults(value.slots, value.settings)
        return replace(value, settings={key: _completed(part) for key, part in settings.items()})
    if isinstance(value, list):
        return [_completed(part) for part in value]
    if isinstance(value, dict):
        return {key: _completed(part) for key, part in value.items()}
    return value


def _plain(value: Any) -> Any:
    """Calls as names, tuples as lists, paths as text; objects that were given stay."""
    if isinstance(value, _Call):
        settings = _plain(value.settings)
        return {value.name: settings} if value.kind else settings
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return str(value) if isinstance(value, Path) else value


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_plain(part) for key, part in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str | Path)


def _said(value: Any) -> str:
    text = "null" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
