"""Center: distances to running centers beside a classifier's cross-entropy."""

import math
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from quad4 import LABEL4, LABELS, QUAD4, in_batch, random_batch

import nearkin as nk
from nearkin.core import Batch
from nearkin.losses.pairwise import contrastive
from nearkin.objectives.center import Center

BATCH = Batch(None, label=LABEL4)


def center(classes=2, dim=2, **settings) -> Center:
    return Center(classes, dim, **settings).double()


def labelled(label) -> Batch:
    return Batch(None, label=torch.as_tensor(label))


def test_of_quad4_at_its_start():
    terms = center(weight=1.0)(QUAD4, BATCH)
    assert terms.tightness.item() == pytest.approx(0.75, abs=1e-12)
    assert terms.contrast.item() == pytest.approx(math.log(2), abs=1e-12)
    assert not terms.other


def test_the_contrastive_tightness_is_four_a_class_times_its_own():
    z, label = random_batch(LABELS["balanced"])
    rows = F.normalize(z)
    tightness = center(4, 5, weight=1.0)(rows, labelled(label)).tightness
    torch.testing.assert_close(contrastive(in_batch(z, label)).tightness, 4 / 4 * tightness)


@pytest.mark.parametrize("weight", [0.003, 2.0])
def test_the_weight_is_that_of_a_sum_over_rows(weight):
    z, label = random_batch(LABELS["unbalanced"])
    objective = center(4, 5, weight=weight)
    objective.centers.normal_(generator=torch.Generator().manual_seed(1))
    objective.started.fill_(True)
    kept = objective.centers.tolist()
    expected = 0.0
    for row, y in zip(z.tolist(), label.tolist(), strict=True):
        expected += math.dist(row, kept[y]) ** 2 / 2
    terms = objective(z, labelled(label))
    assert terms.tightness.item() == pytest.approx(weight * expected, rel=1e-12)


def test_the_contrast_is_the_cross_entropy_of_its_classifier():
    z, label = random_batch(LABELS["unbalanced"])
    objective = center(6, 5)
    with torch.no_grad():
        objective.classifier.weight.normal_(generator=torch.Generator().manual_seed(1))
        objective.classifier.bias.normal_(generator=torch.Generator().manual_seed(2))
    terms = objective(z, labelled(label))
    expected = F.cross_entropy(z @ objective.classifier.weight.T + objective.classifier.bias, label)
    torch.testing.assert_close(terms.contrast, expected)


def test_the_centers_are_constants_for_the_gradient():
    z = QUAD4.clone().requires_grad_()
    (slope,) = torch.autograd.grad(center(weight=0.5)(z, BATCH).tightness, z)
    means = torch.stack([QUAD4[:2].mean(0), QUAD4[2:].mean(0)])
    torch.testing.assert_close(slope, 0.5 * (QUAD4 - means[LABEL4]))


def test_a_class_starts_at_the_mean_of_its_first_rows():
    objective = center(3)
    objective.after(QUAD4, labelled([0, 0, 2, 2]))
    torch.testing.assert_close(objective.centers[0], QUAD4[:2].mean(0))
    torch.testing.assert_close(objective.centers[2], QUAD4[2:].mean(0))
    assert objective.started.tolist() == [True, False, True]
    assert not objective.centers[1].any()


@pytest.mark.parametrize("rate", [0.5, 1.0])
def test_the_centers_move_as_the_paper_says(rate):
    objective = center(4, 5, rate=rate)
    kept = {}
    for seed in range(5):
        z, label = random_batch(LABELS["unbalanced" if seed % 2 else "pairs"], seed=seed)
        objective.after(z, labelled(label))
        for k in set(label.tolist()):
            rows = [row for row, y in zip(z.tolist(), label.tolist(), strict=True) if y == k]
            c = kept.get(k) or [math.fsum(column) / len(rows) for column in zip(*rows, strict=True)]
            kept[k] = [
                c[d] - rate * math.fsum(c[d] - row[d] for row in rows) / (1 + len(rows))
                for d in range(5)
            ]
    expected = torch.tensor([kept[k] for k in range(4)], dtype=torch.float64)
    torch.testing.assert_close(objective.centers, expected)


def test_centers_near_classes_that_stand_still():
    objective = center()
    objective.after(QUAD4.flip(0), BATCH)
    means = torch.stack([QUAD4[:2].mean(0), QUAD4[2:].mean(0)])
    gaps = []
    for _ in range(40):
        objective.after(QUAD4, BATCH)
        gaps.append((objective.centers - means).norm().item())
    assert gaps == sorted(gaps, reverse=True)
    # Each batch leaves 1 - rate · 2/3 of the gap.
    assert gaps[1] == pytest.approx(gaps[0] * 2 / 3)
    assert gaps[-1] < 1e-6


def test_the_centers_move_after_the_turn_and_not_in_evaluation():
    objective = center()
    for turn in objective.turns(QUAD4.clone().requires_grad_(), BATCH):
        assert turn.learns == ("encoder", "objective")
        assert not objective.started.any()
    assert objective.started.all()
    kept = objective.centers.clone()
    objective.eval().after(QUAD4.flip(0), BATCH)
    assert torch.equal(objective.centers, kept)


def test_the_state_survives_saving_and_loading():
    one, two = center(4, 5), center(4, 5)
    z, label = random_batch(LABELS["unbalanced"])
    one.after(z, labelled(label))
    two.load_state_dict(one.state_dict())
    more = random_batch(LABELS["unbalanced"], seed=1)[0]
    torch.testing.assert_close(
        two(more, labelled(label)).total, one(more, labelled(label)).total, rtol=0, atol=0
    )


def test_by_descent_classes_gather_and_part():
    z, label = random_batch(LABELS["balanced"])
    z.requires_grad_()
    objective = nk.objective("center", classes=4, dim=5, weight=0.1).double()
    descent = {
        "encoder": torch.optim.SGD([z], 0.3),
        "objective": torch.optim.SGD(objective.learners()["objective"].parameters(), 0.3),
    }
    values = []
    for _ in range(100):
        for turn in objective.turns(z, label):
            nk.update(turn, descent)
            values.append(turn.terms.floats())
    assert values[-1]["tightness"] < 0.01 * values[0]["tightness"]
    assert values[-1]["contrast"] < 0.1 * values[0]["contrast"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e20, 1e-20, 0.0])
def test_rows_at_the_border_give_finite_numbers(scale, dtype):
    z, label = random_batch(LABELS["unbalanced"])
    objective = Center(4, 5).to(dtype)
    z = (z * scale).to(dtype).requires_grad_()
    # A longer row than squares allow is compared as if it ended there, with a warning.
    beyond = pytest.warns(UserWarning, match="entries beyond") if scale > 1 else nullcontext()
    with beyond:
        terms = objective(z, labelled(label))
        objective.after(z.detach(), labelled(label))
    assert terms.total.isfinite()
    assert torch.autograd.grad(terms.total, z)[0].isfinite().all()
    assert objective.centers.isfinite().all()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"weight": 0.0}, "weight must be above 0, not 0"),
        ({"rate": 0.0}, "rate must be above 0 and at most 1, not 0"),
        ({"rate": 1.5}, "rate must be above 0 and at most 1, not 1.5"),
    ],
)
def test_settings_out_of_range_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        Center(2, 2, **settings)


def test_labels_without_a_class_and_rows_of_several_are_refused():
    with pytest.raises(ValueError, match="label 2 is out of range"):
        center()(QUAD4, labelled([0, 0, 1, 2]))
    with pytest.raises(ValueError, match="a center needs rows of one class each"):
        center()(QUAD4, labelled(F.one_hot(LABEL4).bool()))
    with pytest.raises(ValueError, match="embeddings of 2 dimensions meet references of 5"):
        center(2, 5)(QUAD4, BATCH)
