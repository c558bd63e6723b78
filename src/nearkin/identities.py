"""What tells one module from another: weights, settings and code. What is kept under that name is
decided by those who keep it."""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
import inspect
import os
import pathlib
import sys
import types
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nearkin import __version__
from nearkin.cache import versions

# Their versions say what their code is.
_VERSIONED = ("torch", "nearkin", "timm", "torchvision", "PIL", "numpy")
_KNOWN = {*_VERSIONED, *sys.stdlib_module_names} - {"__main__"}
# Texts that say all of them.
_PLAIN = (
    *(type(None), bool, int, float, complex, str, bytes, range, slice, enum.Enum),
    *(np.generic, pathlib.PurePath, torch.dtype, torch.device, torch.layout, torch.memory_format),
)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
# Of every module: weights and parts are described by themselves, the rest changes no evaluation.
_OF_ALL = {*vars(nn.Module()), "call_super_init", "dump_patches", "_compiled_call_impl"}


def identity_of(module: nn.Module) -> str | None:
    """A digest of all that decides what a module gives in evaluation; None where it cannot be
    told.

    Its weights and buffers, every attribute of its parts, their hooks, the source of classes and
    functions that no package named here brings, and the versions of those packages.
    """
    try:
        return _Described(module).digest()
    except (_UnknownError, RecursionError):
        return None


def contents(value: Tensor) -> bytes:
    """The numbers of a tensor, row after row."""
    flat = value.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes()


class _UnknownError(Exception):
    """Something of which nobody can say whether it is still the same."""


class _Described:
    """Texts of a module and of all that it holds."""

    def __init__(self, module: nn.Module):
        self.module = module
        # What holds itself is named by its place.
        self.met: dict[int, str] = {id(part): name for name, part in module.named_modules()}

    def digest(self) -> str:
        """Of the module, its weights and the versions that compute with them."""
        told = [__version__, torch.__version__, np.__version__]
        told += map(str, versions("timm", "torchvision", "pillow"))
        digest = hashlib.sha256(repr(told).encode())
        for name, part in self.module.named_modules(remove_duplicate=False):
            digest.update(f"\n{name} {self._part(part)}".encode())
        for weights in (self.module.named_parameters, self.module.named_buffers):
            for name, value in weights(remove_duplicate=False):
                digest.update(f"\n{name} {self.of(value)}".encode())
        return digest.hexdigest()

    def _part(self, part: nn.Module) -> str:
        held = {k: v for k, v in sorted(vars(part).items()) if k not in _OF_ALL}
        hooks = [list(getattr(part, name).values()) for name in _HOOKS]
        return f"{_class(type(part))} {self.of(held)} {self.of(hooks)}"

    def of(self, value: Any) -> str:
        """A text that is another for another value. Raises _UnknownError."""
        if isinstance(value, _PLAIN):
            return f"{type(value).__qualname__} {value!r}"
        if isinstance(value, (Tensor, np.ndarray)):
            return _array(value)
        if isinstance(value, (types.ModuleType, weakref.ref)):
            return getattr(value, "__name__", "weak")
        if isinstance(value, type):
            return _class(value)
        if id(value) in self.met:
            return f"as {self.met[id(value)]}"
        self.met[id(value)] = f"number {len(self.met)}"
        try:
            for kinds, describe in self._ways():
                if isinstance(value, kinds):
                    return f"{type(value).__qualname__} {describe(value)}"
            return self._object(value)
        finally:
            del self.met[id(value)]

    def _ways(self) -> list[tuple[Any, Callable[[Any], str]]]:
        return [
            (Mapping, lambda v: self._all(each for pair in v.items() for each in pair)),
            ((list, tuple), self._all),
            ((set, frozenset), lambda v: repr(sorted(map(self.of, v)))),
            (functools.partial, lambda v: self._all([v.func, v.args, v.keywords])),
            (types.MethodType, lambda v: self._all([v.__func__, v.__self__])),
            (types.FunctionType, self._function),
            ((types.BuiltinFunctionType, np.ufunc), self._builtin),
            ((types.MethodDescriptorType, types.WrapperDescriptorType), lambda v: v.__qualname__),
            (nn.Module, self._inner),
        ]

    def _all(self, values: Any) -> str:
        return repr([self.of(value) for value in values])

    def _inner(self, module: nn.Module) -> str:
        """A module that is held, but is no part."""
        for name, part in module.named_modules():
            self.met.setdefault(id(part), f"{self.met[id(module)]}.{name}")
        parts = [self._part(part) for part in module.modules()]
        tensors = [*module.named_parameters(), *module.named_buffers()]
        return f"{parts} {self._all(tensors)}"

    def _function(self, function: types.FunctionType) -> str:
        name = f"{function.__module__}.{function.__qualname__}"
        cells = [_content(cell) for cell in function.__closure__ or ()]
        held = self._all([cells, function.__defaults__, function.__kwdefaults__])
        return f"{name} {held} {'' if _is_known(function.__module__) else _source(function)}"

    def _builtin(self, function: Any) -> str:
        owner = getattr(function, "__self__", None)
        bound = owner is not None and not isinstance(owner, (type, types.ModuleType))
        return f"{function.__module__}.{function.__name__} {self.of(owner) if bound else ''}"

    def _object(self, value: Any) -> str:
        """Anything else is its class and its attributes."""
        if dataclasses.is_dataclass(value):
            held = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        elif hasattr(value, "__dict__") and not hasattr(type(value), "__slots__"):
            held = vars(value)
        else:
            raise _UnknownError(type(value).__qualname__)
        if _is_hidden(type(value)):
            raise _UnknownError(type(value).__qualname__)
        return f"{_class(type(value))} {self.of(dict(sorted(held.items())))}"


def _is_hidden(kind: type) -> bool:
    """Whether its objects may hold more than their attributes: classes that are not Python's."""
    made = [base for base in kind.__mro__ if base is not object]
    return any(not base.__flags__ & (1 << 9) for base in made)  # Py_TPFLAGS_HEAPTYPE


def _array(value: Tensor | np.ndarray) -> str:
    try:
        raw = contents(value) if isinstance(value, Tensor) else value.tobytes()
    except (RuntimeError, NotImplementedError, TypeError) as error:
        raise _UnknownError(str(error)) from error
    if isinstance(value, np.ndarray) and value.dtype.hasobject:
        raise _UnknownError("an array of objects")
    digest = hashlib.sha256(raw).hexdigest()
    return f"{type(value).__qualname__} {value.dtype} {tuple(value.shape)} {digest}"


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return "empty"


def _is_known(name: str | None) -> bool:
    return name is not None and name.partition(".")[0] in _KNOWN


def _class(kind: type) -> str:
    """Its name; with the code of it, of its bases and of the functions that stand in it now."""
    said = [f"{kind.__module__}.{kind.__qualname__}"]
    for base in kind.__mro__:
        if base is object or _is_known(base.__module__):
            continue
        said.append(_source(base))
        functions = {k: v for k, v in vars(base).items() if isinstance(v, types.FunctionType)}
        for name, function in sorted(functions.items()):
            # A dataclass writes some of them itself, without a file.
            if function.__code__.co_filename != "<string>":
                said += [name, _source(function)]
    return " ".join(said)


def _source(thing: Any) -> str:
    """The code of a class or function, else the stamp of its file. Raises _UnknownError."""
    try:
        return inspect.getsource(thing)
    except (OSError, TypeError):
        path = getattr(sys.modules.get(thing.__module__), "__file__", None)
    try:
        status = os.stat(path or "")
    except OSError:
        raise _UnknownError(f"{thing} without a source") from None
    return f"{path} {status.st_size} {status.st_mtime_ns}"
