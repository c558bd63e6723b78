"""Convolutions with their BatchNorm, sum and activation folded in, for evaluation only. Which rows
are embedded, and in which batches, stands in extraction."""

from __future__ import annotations

import contextlib
import operator
from collections import Counter, deque
from collections.abc import Iterator
from copy import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from nearkin.runtime import GlobalBatchNorm

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, GlobalBatchNorm)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_CONTAINERS = (list, dict, set, deque)
_SUMS = (operator.add, operator.iadd, torch.add)
# Name and bounds by which oneDNN knows an activation.
_Activation = tuple[str, list[float]]
_NONE: _Activation = ("none", [])
_ACTIVATIONS: dict[Any, _Activation] = {
    nn.ReLU: ("relu", []),
    nn.ReLU6: ("hardtanh", [0.0, 6.0]),
    nn.SiLU: ("swish", []),
    nn.Hardswish: ("hardswish", []),
    "relu": ("relu", []),
    "relu_": ("relu", []),
    F.relu: ("relu", []),
    torch.relu: ("relu", []),
    F.relu6: ("hardtanh", [0.0, 6.0]),
    F.silu: ("swish", []),
    F.hardswish: ("hardswish", []),
}


@contextlib.contextmanager
def folded(module: nn.Module, device: torch.device) -> Iterator[list[nn.Module]]:
    """Within: parts of the module run as graphs of folded convolutions; says which.

    The module must be in evaluation mode. Its parameters and buffers stay what and where they are;
    the graphs hold their own, channels last, from the weights as they are now. What cannot be
    traced, has hooks, or sets attributes of a module, runs as before; so the graphs keep no state,
    and several threads may run them. Under autocast the convolutions compute in its dtype.
    """
    graphs = dict(_graphs(module, device))
    try:
        for part, graph in graphs.items():
            part.forward = graph.forward
        yield list(graphs)
    finally:
        for part in graphs:
            vars(part).pop("forward", None)


def _graphs(module: nn.Module, device: torch.device) -> Iterator[tuple[nn.Module, fx.GraphModule]]:
    """The largest parts that can be traced and gain by it."""
    if not any(type(part) in _CONVOLUTIONS for part in module.modules()):
        return
    graph = _graph(module, device)
    if graph is not None:
        yield module, graph
    elif type(module) not in _CONVOLUTIONS:
        for child in module.children():
            yield from _graphs(child, device)


def _graph(module: nn.Module, device: torch.device) -> fx.GraphModule | None:
    if "forward" in vars(module) or any(map(is_watched, module.modules())):
        return None
    try:
        rewriting = _Rewriting(_traced(module))
        changed = rewriting.fold_norms()
        if device.type == "cpu" and torch.backends.mkldnn.is_available():
            changed = rewriting.fuse() or changed
        return rewriting.done() if changed else None
    except Exception:  # Anybody's forward meets the tracer here, and may raise anything.
        return None


def is_watched(module: nn.Module) -> bool:
    """Whether others are told when it is called."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _traced(module: nn.Module) -> fx.GraphModule:
    """The graph of a module, which is afterwards as it was. Raises ValueError where its forward
    sets attributes: the graph would not."""
    before = [_Attributes(part) for part in module.modules()]
    try:
        graph = fx.GraphModule(module, _Tracer().trace(module))
    finally:
        changed = [held.put_back() for held in before]
    if any(changed):
        raise ValueError(f"{type(module).__name__} keeps something in its forward")
    return graph


class _Attributes:
    """What stands in a module, also in its lists and dicts."""

    def __init__(self, part: nn.Module):
        self.held = vars(part)
        self.before = dict(self.held)
        self.inside = [(v, copy(v)) for v in self.held.values() if isinstance(v, _CONTAINERS)]

    def put_back(self) -> bool:
        """Make all as it was; whether it was not."""
        # The tracer itself names constants so.
        now = {k: v for k, v in self.held.items() if not k.startswith("_tensor_constant")}
        known = {k: v for k, v in self.before.items() if not k.startswith("_tensor_constant")}
        changed = not _same(now, known)
        self.held.clear()
        self.held.update(self.before)
        for container, kept in self.inside:
            if not _same(container, kept):
                changed = True
                container.clear()
                any_kind: Any = container
                put = any_kind.extend if hasattr(container, "extend") else any_kind.update
                put(kept)
        return changed


def _same(one: Any, other: Any) -> bool:
    """Whether two containers hold the same objects."""
    if len(one) != len(other):
        return False
    if isinstance(one, dict):
        return all(k in other and other[k] is v for k, v in one.items())
    if isinstance(one, set):
        return one == other
    return all(a is b for a, b in zip(one, other, strict=True))


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        # A BatchNorm of somebody else may do anything.
        known = type(m).__module__.partition(".")[0] in ("torch", "nearkin", "timm")
        norm = known and isinstance(m, _BatchNorm)
        return norm or super().is_leaf_module(m, module_qualified_name)


class _Fused(nn.Module):
    """A convolution, then perhaps a sum with another map, then perhaps an activation: one oneDNN
    kernel."""

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        self.conv = conv
        self.held: dict[torch.dtype, tuple[Tensor, Tensor | None]] = {}
        self.geometry = (list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups)
        self.activation: _Activation = _NONE
        self.into = False  # whether the sum may overwrite the other map

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """(N, C, H, W), and the map (N, C', H', W') to add -> (N, C', H', W')."""
        low = torch.is_autocast_enabled("cpu")
        x = x.to(torch.get_autocast_dtype("cpu") if low else self.conv.weight.dtype)
        weight, bias = self._packed(x)
        (name, bounds), kernels = self.activation, torch.ops.mkldnn
        if other is None:
            last = (bias, *self.geometry, name, bounds, "")
            return kernels._convolution_pointwise(x, weight, *last)
        unary = None if name == "none" else name
        last = (bias, *self.geometry, "add", 1.0, unary, bounds, "")
        other = other.to(x.dtype)
        if self.into:
            return kernels._convolution_pointwise_.binary(other, x, weight, *last)
        return kernels._convolution_pointwise.binary(x, other, weight, *last)

    def _packed(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Weights in the order that oneDNN likes best for inputs such as these, and the bias."""
        held = self.held.get(x.dtype)
        if held is None:
            weight, bias = _last(self.conv.weight, x.dtype), self.conv.bias
            reorder = torch.ops.mkldnn._reorder_convolution_weight
            weight = reorder(weight, *self.geometry, list(x.shape))
            if bias is not None:
                # Rounding it would move whole maps; a kernel that works in place wants it so.
                bias = bias.detach().to(x.dtype) if self.into else bias.detach()
            held = (weight, bias)
            self.held[x.dtype] = held
        return held


def _last(weight: Tensor, dtype: torch.dtype) -> Tensor:
    copy = weight.detach().to(dtype)
    return copy.contiguous(memory_format=torch.channels_last) if copy.ndim == 4 else copy


class _Rewriting:
    """A traced graph on its way to folded convolutions."""

    def __init__(self, graph: fx.GraphModule):
        self.whole, self.graph = graph, graph.graph
        self.parts: dict[str, nn.Module] = dict(graph.named_modules())
        self.calls = Counter(n.target for n in self.graph.nodes if n.op == "call_module")

    def done(self) -> fx.GraphModule:
        """The graph, ready to be run."""
        self.graph.lint()
        self.whole.recompile()
        return self.whole

    def part(self, node: Any) -> nn.Module | None:
        """The module that a node calls, if nothing else calls it; None for other nodes."""
        if not isinstance(node, fx.Node) or node.op != "call_module":
            return None
        return self.parts[str(node.target)] if self.calls[node.target] == 1 else None

    def put(self, node: fx.Node, part: nn.Module) -> None:
        """Let the node call another module."""
        self.parts[str(node.target)] = part
        self.whole.add_submodule(str(node.target), part)

    def fold_norms(self) -> bool:
        """Put each BatchNorm into the convolution before it, where nobody else reads that."""
        changed = False
        for node in list(self.graph.nodes):
            norm = self.part(node)
            source: Any = node.args[0] if node.args else None
            conv, rest = self.part(source), _rest(norm)
            if type(conv) not in _CONVOLUTIONS or rest is None or len(source.users) > 1:
                continue
            conv = fuse_conv_bn_eval(conv, norm)  # type: ignore[type-var]
            conv.weight = nn.Parameter(_last(conv.weight, conv.weight.dtype), False)
            self.put(source, conv)
            self.put(node, rest)
            if isinstance(rest, nn.Identity):
                self._skip(node, source)
            changed = True
        return changed

    def fuse(self) -> bool:
        """Make each convolution one kernel with the sum and the activation after it."""
        nodes = [n for n in self.graph.nodes if _is_plain(self.part(n))]
        for node in nodes:
            self.put(node, _Fused(self.part(node)))  # type: ignore[arg-type]
        for node in nodes:
            self._take_activation(self._take_sum(node))
        return bool(nodes)

    def _take_sum(self, node: fx.Node) -> fx.Node:
        """The node with the sum that follows it, where the two operands are two nodes."""
        after = _only_user(node)
        if after is None or after.target not in _SUMS or after.kwargs or len(after.args) != 2:
            return node
        other = after.args[0] if after.args[1] is node else after.args[1]
        if not isinstance(other, fx.Node) or other is node:
            return node
        part: Any = self.part(node)
        part.into = other is not node.args[0] and self._is_spent(other, after)
        with self.graph.inserting_before(after):
            joined = self.graph.call_module(str(node.target), (node.args[0], other))
        after.replace_all_uses_with(joined)
        self.graph.erase_node(after)
        self.graph.erase_node(node)
        return joined

    def _is_spent(self, other: fx.Node, after: fx.Node) -> bool:
        """Whether nobody reads this map after the sum, and nothing shares its memory."""
        place = {node: i for i, node in enumerate(self.graph.nodes)}
        readers = [user for user in other.users if user is not after]
        fresh = all(isinstance(self.part(node), _Fused) for node in (other, *readers))
        reads_only = all(len(user.args) == 1 for user in readers)
        return fresh and reads_only and all(place[user] < place[after] for user in readers)

    def _take_activation(self, node: fx.Node) -> None:
        after = _only_user(node)
        if after is None or after.args[:1] != (node,):
            return
        said = _activation(after, self.parts)
        part: Any = self.part(node)
        # With a sum, oneDNN's kernel knows this activation only.
        if said is not None and (len(node.args) == 1 or said[0] == "relu"):
            part.activation = said
            self._skip(after, node)

    def _skip(self, node: fx.Node, source: fx.Node) -> None:
        node.replace_all_uses_with(source)
        self.graph.erase_node(node)


def _rest(norm: nn.Module | None) -> nn.Module | None:
    """What is left of a BatchNorm once it is folded; None where it cannot be."""
    if not isinstance(norm, _BatchNorm) or norm.training or norm.running_mean is None:
        return None
    if type(norm) in _NORMS:
        return nn.Identity()
    # timm's BatchNorm has its activation inside.
    inside = type(norm).__name__ == "BatchNormAct2d" and isinstance(norm.drop, nn.Identity)
    return norm.act if inside else None  # type: ignore[return-value]


def _is_plain(conv: nn.Module | None) -> bool:
    if type(conv) is not nn.Conv2d or conv.weight.dtype != torch.float32:
        return False
    return conv.padding_mode == "zeros" and not isinstance(conv.padding, str)


def _only_user(node: fx.Node) -> fx.Node | None:
    users = list(node.users)
    return users[0] if len(users) == 1 else None


def _activation(node: fx.Node, parts: dict[str, nn.Module]) -> _Activation | None:
    # A module that several places call is one all the same: it has no state.
    called = type(parts[str(node.target)]) if node.op == "call_module" else node.target
    return _ACTIVATIONS.get(called)
