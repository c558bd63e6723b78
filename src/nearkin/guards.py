"""What is allowed and yet is nearly always a mistake, said once with its remedy: parameters that no
optimizer moves, match bits passed as labels, batches without a pair, similarities under a
temperature that is meant for cosines. What is wrong in itself raises, in checks."""

from __future__ import annotations

import inspect
import math
from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nearkin.core import Comparison, warn_once

EARLY = 3  # batches in which what costs more than a few operations is looked at
WINDOW = 1 << 16  # entries of a parameter that are kept to see whether it moves
_LARGEST_LOGIT = 100.0  # a similarity under its temperature; cosines reach it at temperature 0.01
_FAR_FROM_1 = 2.0  # a similarity that rows of length 1 do not reach
_FEW_ROWS = 4  # a batch of so few rows has two classes by chance
_NEAREST = 4  # parameters of the encoder that bear witness
_FARTHEST = 10_000  # nodes of a graph that are looked through for them
_ONE_CLASS = (
    "a batch holds one class only, so nothing spreads the classes; mix classes in a batch "
    "(balanced sampler), and look at the labels"
)


def _over(value: float) -> float:
    return 1 / value


def _as_is(value: float) -> float:
    return value


def _squared(value: float) -> float:
    return value * value


def _exp(value: float) -> float:
    return math.exp(min(value, 700.0))


# What multiplies a similarity: of each loss the settings, their factors and where these are 1. The
# losses that refuse other closenesses than cosine are not among them.
_SHARP: Mapping[str, Mapping[str, tuple[Callable[[float], float], float]]] = {
    "easy_positive_hard_negative": {"temperature": (_over, 1)},
    "easy_positive_semi_hard_negative": {"temperature": (_over, 1)},
    "infonce": {"temperature": (_over, 1)},
    "nca": {"temperature": (_over, 1)},
    "norm_softmax": {"temperature": (_over, 1)},
    "smooth_ap": {"temperature": (_over, 1)},
    "snca": {"temperature": (_over, 1)},
    "supcon": {"temperature": (_over, 1)},
    "recall_at_k": {"rank_temperature": (_over, 1)},
    "binomial_deviance": {"alpha": (_as_is, 1)},
    "cosface": {"scale": (_as_is, 1)},
    "multi_similarity": {"alpha": (_as_is, 1), "beta": (_as_is, 1)},
    "proxy_anchor": {"alpha": (_as_is, 1)},
    "proxy_nca": {"scale": (_squared, 1)},
    "proxy_nca_plus_plus": {"scale": (_squared, 1)},
    "sigmoid": {"log_scale": (_exp, 0)},
}


class _Trace:
    """Some entries of a parameter as they were, where its gradient is largest: there it moves."""

    def __init__(self, parameter: Tensor):
        self.parameter, self._at = parameter, 0
        if parameter.grad is not None and parameter.numel() > WINDOW:
            slope = parameter.grad.reshape(-1)
            low, high = slope.aminmax()
            steepest = slope.argmax() if high > -low else slope.argmin()
            self._at = max(0, int(steepest) - WINDOW // 2)
        self._kept = self._now().clone()

    def moved(self) -> bool:
        """Whether the entries have other values than when this was asked for last."""
        now = self._now()
        alike = now.dtype == self._kept.dtype and now.device == self._kept.device
        if alike and torch.equal(now, self._kept):
            return False
        self._kept = now.clone()
        return True

    def _now(self) -> Tensor:
        return self.parameter.detach().reshape(-1)[self._at : self._at + WINDOW]


class Watch:
    """Notes which parameters of a loss get gradients; warns once of one that no optimizer moves.

    A parameter is told of that got gradients in two batches and did not move, though a step was
    made since: the encoder behind the embeddings moved, or got no slope from this loss (a
    classifier of zeros gives none) and had its gradient cleared. So batches whose gradients are
    gathered before one step, a learning rate of 0 and a skipped step are no sign. Without an
    encoder each batch is taken for a step.
    """

    def __init__(self) -> None:
        self.reached: set[str] = set()  # parameters that got a gradient; whoever reads it clears it
        self._begun = False
        self._open: dict[str, _Trace | None] = {}  # not yet seen moving; None: no gradient yet
        self._again: set[str] = set()  # got a gradient since the last batch
        self._batches: Counter[str] = Counter()  # in how many batches each got one
        self._outrun: set[str] = set()  # a step was made since the first of them
        self._encoder: list[_Trace] = []
        self._slope: bool | None = None  # whether the last batch had one; None: no backward pass
        self._cleared = _Cleared()

    def __reduce__(self) -> tuple[type[Watch], tuple[()]]:
        # Hooks hang on parameters and are not copied: a copy begins a watch of its own.
        return Watch, ()

    def look(self, module: nn.Module, z: Tensor) -> None:
        """Called with the module watched and each batch of embeddings (N, D), before its loss."""
        if not self._begun:
            self._begin(module)
        if not self._open:
            return
        stepped = self._stepped()
        for name in sorted(self._again):
            trace = self._open[name]
            self._batches[name] += 1
            if stepped:
                self._outrun.add(name)
            if trace is None or trace.moved():
                del self._open[name]
            elif name in self._outrun and self._batches[name] > 1:
                del self._open[name]
                warn_once(
                    f"the parameter {name!r} of the loss got gradients in two batches and did not "
                    "move; is it in your optimizer? add criterion.parameters()"
                )
        self._again.clear()
        self._slope = None
        if not self._open:
            self._encoder, self._cleared = [], _Cleared()
        elif z.requires_grad:
            self._encoder = self._encoder or [_Trace(parameter) for parameter in _behind(z)]
            z.register_hook(self._note_slope)

    def _stepped(self) -> bool:
        if not self._encoder:
            return True
        moved = [trace.moved() for trace in self._encoder]  # each of them must look
        cleared = self._cleared.since(self._encoder[0].parameter.grad, self._slope is not None)
        return any(moved) or (self._slope is False and cleared)

    def _begin(self, module: nn.Module) -> None:
        self._begun = True
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                self._open[name] = None
                parameter.register_post_accumulate_grad_hook(self._noting(name))

    def _note_slope(self, slope: Tensor) -> None:
        self._slope = bool(self._slope) or bool(slope.any())

    def _noting(self, name: str) -> Callable[[Tensor], None]:
        def note(parameter: Tensor) -> None:
            self.reached.add(name)
            # A gradient of zeros moves nothing and says nothing.
            if name not in self._open or name in self._again or not _any(parameter.grad):
                return
            self._again.add(name)
            if self._open[name] is None:
                self._open[name] = _Trace(parameter)

        return note


class _Cleared:
    """Whether a gradient was cleared since it was asked for last: gathering keeps the tensor."""

    def __init__(self) -> None:
        self._last: Tensor | None = None

    def since(self, now: Tensor | None, came: bool) -> bool:
        """`now` the gradient, `came` whether a backward pass has reached it since."""
        last, self._last = self._last, now
        return came if now is None else last is not None and now is not last


def _any(slope: Tensor | None) -> bool:
    if slope is None or slope.layout != torch.strided:
        return False
    # The first entries nearly always tell; a pass over all of very many classes takes milliseconds.
    return bool(slope.reshape(-1)[:WINDOW].any()) or bool(slope.any())


def _behind(z: Tensor) -> list[nn.Parameter]:
    """The parameters that embeddings come from, the nearest few."""
    if isinstance(z, nn.Parameter):
        return [z]
    found: list[nn.Parameter] = []
    seen, nodes = {z.grad_fn}, deque([z.grad_fn])
    while nodes and len(found) < _NEAREST and len(seen) < _FARTHEST:
        node = nodes.popleft()
        own = getattr(node, "variable", None)
        if isinstance(own, nn.Parameter):
            found.append(own)
        for before, _ in getattr(node, "next_functions", ()):
            if before is not None and before not in seen:
                seen.add(before)
                nodes.append(before)
    return found


def warn_of_match_bits(label: Tensor) -> bool:
    """Warn once of labels (N,) that only say whether rows match: two values, 0 and 1 or -1 and 1.
    False where the batch is too small to tell."""
    if label.ndim != 1 or len(label) <= _FEW_ROWS:
        return label.ndim != 1
    low, high = map(int, label.aminmax())
    if high != 1 or low not in (0, -1) or (low == -1 and not bool(label.all())):
        return True
    warn_once(
        f"the labels are only {low} and {high}, so all rows of label {high} are positives of each "
        f"other, and so are all of label {low}; if they say whether a row matches its partner, "
        "give pairs instead: both rows of a matching pair the pair's number as their label, or the "
        "partners as references with reference_labels. If there are two classes, say classes=2"
    )
    return True


def warn_of_no_pair(label: Tensor | None) -> None:
    """Warn once of a batch without a positive pair; `label` (N,) or (N, L), None: it has none."""
    classes = len(label.unique()) if label is not None and label.ndim == 1 else 0
    if label is not None and classes == 1 < len(label):
        warn_once(_ONE_CLASS)
    elif label is not None and 1 < len(label) == classes:
        warn_once(
            "a batch holds no positive pair, since each row has a label of its own; where labels "
            "number the rows, give both views of an item one label, else use the balanced sampler, "
            "larger batches or a memory"
        )
    else:
        warn_once(
            "a batch holds no positive pair, so nothing gathers a class; use the balanced sampler, "
            "larger batches or a memory"
        )


def warn_of_one_class(c: Comparison) -> None:
    """Warn once of a batch in which every pair that is compared is a positive one."""
    # As many positives as that has an anchor only where nearly all is positive: the rest is rare.
    if c.positives.columns.shape[1] < c.shape[1] - 1:
        return
    if int(c.positives.count.sum()) == int(c.compared.sum()):
        warn_once(_ONE_CLASS)


def warn_of_large_logits(c: Comparison, loss: Callable[..., Any]) -> bool:
    """Warn once where rows of other lengths than 1 are compared under a temperature or scale meant
    for cosines; whether it was said. Looks at the rows, never at (A, R)."""
    sharpest = _sharpest(loss)
    if c.closeness == "cosine" or c.anchors is None or c.references is None or sharpest is None:
        return False
    anchors, references = c.anchors.detach(), c.references.detach()
    if c.closeness == "euclidean":
        middle = references.mean(0)
        anchors, references = anchors - middle, references - middle
    lengths = [float(x.square().sum(1).mean().sqrt()) for x in (anchors, references)]
    setting, value, factor, mild = sharpest
    similarity = lengths[0] * lengths[1]
    if not (similarity > _FAR_FROM_1 and similarity * factor > _LARGEST_LOGIT):
        return False
    warn_once(
        f"rows of length {lengths[0]:.3g} are compared by closeness={c.closeness!r} under "
        f"{setting}={value:g}, which is meant for cosines, so that logits of about "
        f"{similarity * factor:.0f} saturate the loss; leave closeness out, so that rows are "
        f"normalized for you, or set {setting}={mild:g}"
    )
    return True


def _sharpest(loss: Callable[..., Any]) -> tuple[str, float, float, float] | None:
    """The setting that multiplies similarities most: its name, its value, its factor, and the value
    at which that is 1."""
    known = _SHARP.get(getattr(getattr(loss, "func", loss), "__name__", ""), {})
    if not known:
        return None
    settings = inspect.signature(loss).parameters
    found = []
    for key, (factor, mild) in known.items():
        value = settings[key].default if key in settings else None
        if isinstance(value, int | float) and (value > 0 or not mild):
            found.append((key, float(value), factor(value), float(mild)))
    return max(found, key=lambda each: each[2], default=None)
