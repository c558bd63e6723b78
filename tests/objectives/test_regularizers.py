"""Regularizers: their formulas by hand, their borders, and that they add to a loss."""

import math

import pytest
import torch
from quad4 import QUAD4, random_batch, unit_rows
from torch.autograd import gradcheck

import nearkin as nk
from nearkin.core import Batch
from nearkin.objectives.regularizers import EmbeddingNorm, Orthogonality, Uniformity

ALL = [EmbeddingNorm, Orthogonality, Uniformity]
NOTHING = Batch(None)


def value(objective, z):
    return objective(z, NOTHING).total.item()


def rows(n=7, dim=4, seed=0):
    return random_batch([0] * n, dim, seed=seed)[0]


def test_embedding_norm_is_the_mean_squared_length():
    z = torch.tensor([[3.0, 4.0], [0.0, 1.0], [0.0, 0.0]])
    terms = EmbeddingNorm()(z, NOTHING)
    assert terms.other["norm"].item() == pytest.approx(26 / 3)
    assert terms.tightness == terms.contrast == 0


def slow_covariance(z):
    n, d = len(z), len(z[0])
    middle = [math.fsum(row[k] for row in z) / n for k in range(d)]
    total = 0.0
    for k in range(d):
        for m in range(d):
            c = math.fsum((row[k] - middle[k]) * (row[m] - middle[m]) for row in z) / (n - 1)
            total += c * c * (k != m)
    return total / d


@pytest.mark.parametrize("n", [2, 3, 9])
def test_orthogonality_is_the_covariance_between_dimensions(n):
    z = rows(n)
    assert value(Orthogonality(), z) == pytest.approx(slow_covariance(unit_rows(z)))
    for closeness in ("inner", "euclidean"):
        assert value(Orthogonality(closeness), z) == pytest.approx(slow_covariance(z.tolist()))


def test_dimensions_that_vary_alone_have_no_covariance():
    z = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 2.0], [0.0, -2.0]])
    assert value(Orthogonality(), z) == 0
    # Along one line C is [[2, 2], [2, 2]]: two entries beside the diagonal, over D = 2.
    line = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
    assert value(Orthogonality("inner"), line) == pytest.approx(4)
    assert value(Orthogonality(), line) == pytest.approx(1)


def slow_uniformity(z, t):
    n = len(z)
    potentials = [
        math.exp(-t * math.dist(z[i], z[j]) ** 2) for i in range(n) for j in range(n) if i != j
    ]
    return math.log(math.fsum(potentials) / len(potentials))


@pytest.mark.parametrize("t", [0.5, 2.0, 30.0])
def test_uniformity_is_the_log_of_the_mean_potential(t):
    z = rows(9)
    assert value(Uniformity(t), z) == pytest.approx(slow_uniformity(unit_rows(z), t))
    assert value(Uniformity(t, "euclidean"), z) == pytest.approx(slow_uniformity(z.tolist(), t))


def test_uniformity_of_known_rows():
    # Unit vectors at 0, 60, 90, 180 degrees: d² = 1, 2, 4, 2 - √3, 3, 2.
    squares = [1, 2, 4, 2 - math.sqrt(3), 3, 2]
    expected = math.log(sum(math.exp(-2 * d) for d in squares) / 6)
    assert value(Uniformity(), QUAD4) == pytest.approx(expected)
    assert value(Uniformity(), QUAD4[:1].expand(5, -1)) == pytest.approx(0)
    assert value(Uniformity(3.0), torch.eye(6)) == pytest.approx(-6)


def test_uniformity_is_a_contrast():
    terms = Uniformity()(QUAD4, NOTHING)
    assert terms.contrast == terms.total
    assert not terms.other


@pytest.mark.parametrize("make", [*ALL, lambda: Orthogonality("inner"), lambda: Uniformity(5.0)])
def test_the_gradient_is_that_of_the_value(make):
    objective = make()
    assert gradcheck(lambda z: objective(z, NOTHING).total, rows(6).requires_grad_())


@pytest.mark.parametrize("make", ALL)
@pytest.mark.parametrize("n", [0, 1, 2])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e20])
@pytest.mark.filterwarnings("ignore:an embedding row")
def test_few_rows_and_rows_of_any_length_stay_finite(make, n, scale):
    z = (rows(2)[:n] * scale).float().requires_grad_()
    total = make()(z, NOTHING).total
    assert total.isfinite()
    assert total.ndim == 0
    total.backward()
    assert z.grad.isfinite().all()
    if n < 2 and make is not EmbeddingNorm:
        assert total.item() == 0


@pytest.mark.parametrize("make", ALL)
def test_bfloat16_and_autocast_are_scored_in_float32(make):
    z = rows(6).bfloat16()
    expected = value(make(), z.float())
    with torch.autocast("cpu", torch.bfloat16):
        total = make()(z, NOTHING).total
    assert total.dtype == torch.float32
    assert total.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("make", [Orthogonality, Uniformity])
def test_by_cosine_the_length_of_rows_does_not_matter(make):
    z = rows()
    assert value(make(), 5 * z) == pytest.approx(value(make(), z))


@pytest.mark.parametrize("make", ALL)
def test_a_few_steps_make_it_smaller(make):
    objective, z = make(), rows(8).requires_grad_()
    before = value(objective, z)
    for _ in range(20):
        (slope,) = torch.autograd.grad(objective(z, NOTHING).total, z)
        z.data -= 0.1 * slope
    assert value(objective, z) < before


def test_they_read_no_labels_and_add_to_a_loss():
    names = ["embedding_norm", "orthogonality", "uniformity"]
    z = rows(6).requires_grad_()
    for name in names:
        (turn,) = nk.objective(name).turns(z)
        assert turn.learns == ("encoder", "objective")
    parts = {name: {name: {}} for name in names}
    parts["loss"] = {"compared": {"compare": "in_batch", "loss": "contrastive"}}
    both = nk.objective({"sum": {"parts": parts, "weights": {"uniformity": 0.5}}})
    (turn,) = both.turns(z, [0, 0, 1, 1, 2, 2])
    loss = nk.criterion("contrastive")(z, [0, 0, 1, 1, 2, 2])
    added = value(EmbeddingNorm(), z) + value(Orthogonality(), z) + 0.5 * value(Uniformity(), z)
    assert turn.terms.total.item() == pytest.approx(loss.item() + added)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Uniformity(0.0), "t must be above 0, not 0.0"),
        (lambda: Uniformity(closeness="inner"), "needs distances; set closeness to cosine"),
        (lambda: nk.objective("uniformity", t="x"), "t: expected a number"),
        (lambda: nk.objective("orthogonality", closeness="cosinus"), "did you mean 'cosine'"),
        (lambda: nk.objective("uniformty"), "no objective and no loss.*'uniformity'"),
    ],
)
def test_wrong_settings_are_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()
