"""Samplers of near classes, against classes whose neighbors are known and slow greedy loops."""

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from nearkin.sample import HardClasses, NearestClasses, near
from nearkin.standalone import sampler


def columns(classes=12, rows=3, dim=4, seed=0):
    """Rows of random lengths around random directions, shuffled; labels with gaps."""
    random = torch.Generator().manual_seed(seed)
    label = torch.arange(classes).repeat(rows)[torch.randperm(classes * rows, generator=random)]
    around = torch.randn(classes, dim, generator=random)[label]
    z = around + 0.2 * torch.randn(len(label), dim, generator=random)
    return {"label": label * 3 - 7, "embedding": z * torch.rand(len(z), 1, generator=random)}


def cosines(held):
    """(C, C) by a slow loop; -inf for a class with itself."""
    label, z = held["label"].numpy(), held["embedding"].double().numpy()
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    means = np.stack([unit[label == k].mean(0) for k in np.unique(label)])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    cosine = means @ means.T
    np.fill_diagonal(cosine, -np.inf)
    return cosine


def chosen_classes(held, batches):
    """The classes of each batch by their place, in the order in which they were chosen."""
    place = torch.unique(held["label"], return_inverse=True)[1]
    return [list(dict.fromkeys(place[rows].tolist())) for rows in batches]


def on_a_line():
    """Eight classes along an arc, one row each: the neighbors of a class stand beside it."""
    angle = torch.deg2rad(torch.tensor([0.0, 5, 11, 18, 26, 35, 45, 56]))
    z = torch.stack([angle.cos(), angle.sin()], 1)
    return {"label": torch.arange(8), "embedding": z}


@pytest.mark.parametrize("entries", [1 << 24, 30, 1])
def test_neighbors_are_the_nearest_means_in_blocks_of_any_size(monkeypatch, entries):
    monkeypatch.setattr(near, "_ENTRIES", entries)
    monkeypatch.setattr(near, "_ROWS", 7)
    held = columns()
    found, cosine = near.neighbors(held["label"], held["embedding"], 5), cosines(held)
    assert found.column.tolist() == np.argsort(-cosine, axis=1)[:, :5].tolist()
    np.testing.assert_allclose(found.cosine, -np.sort(-cosine, axis=1)[:, :5], atol=1e-6)


def test_nearest_classes_stand_around_the_class_drawn():
    held = on_a_line()
    batches = chosen_classes(held, NearestClasses(3, 2).batches(held, 0, 0))
    around = {0: [1, 2], 1: [0, 2], 2: [1, 3], 5: [4, 6], 7: [6, 5]}
    for first, *others in batches:
        assert others == around.get(first, [first - 1, first + 1])
    assert len(batches) == 3


def test_hard_classes_join_the_nearest_of_those_chosen():
    held = on_a_line()
    for first, *others in chosen_classes(held, HardClasses(4, 1).batches(held, 0, 0)):
        # From the left end the steps grow, so that a chain runs to the left first.
        left = [*range(first - 1, -1, -1)]
        right = [*range(first + 1, 8)]
        assert others == (left + right)[:3]


@pytest.mark.parametrize("anchors", [1, 2, 3, 6])
def test_nearest_classes_equal_a_slow_loop(anchors):
    held = columns(20)
    cosine = cosines(held)
    for epoch in range(4):
        made = NearestClasses(6, 2, anchors).batches(held, 1, epoch)
        drawn = near._begins(20, len(made) * anchors, 1, epoch)
        for classes in chosen_classes(held, made):
            expected = []
            for k in itertools.islice(drawn, anchors):
                group = [] if k in expected else [k]
                for j in np.argsort(-cosine[k]):
                    if len(group) < 6 // anchors and j not in expected + group:
                        group.append(int(j))
                expected += group
            assert classes == expected


def test_hard_classes_equal_a_slow_greedy_loop():
    held = columns(20)
    cosine = cosines(held)
    for epoch in range(4):
        for classes in chosen_classes(held, HardClasses(7, 2).batches(held, 1, epoch)):
            expected = classes[:1]
            while len(expected) < 7:
                best = cosine[expected].max(0)
                best[expected] = -np.inf
                expected.append(int(best.argmax()))
            assert classes == expected


@pytest.mark.parametrize("made", [NearestClasses(5, 4), NearestClasses(6, 2, 3), HardClasses(5, 4)])
def test_batches_are_p_classes_by_k_rows_that_repeat_only_where_they_must(made):
    held = columns(11, rows=3)
    batches = made.batches(held, 0, 0)
    assert len(batches) == max(33 // (made.classes * made.per_class), -(-11 // made.classes))
    for rows in batches:
        assert set(Counter(held["label"][rows].tolist()).values()) == {made.per_class}
        assert len(rows) == made.classes * made.per_class
        assert max(Counter(rows.tolist()).values()) == -(-made.per_class // 3)


@pytest.mark.parametrize("made", [NearestClasses(4, 1), HardClasses(4, 1)])
def test_every_class_is_the_first_once_before_any_is_again_from_epoch_to_epoch_too(made):
    held = columns(11)
    firsts = [
        classes[0]
        for epoch in range(5)
        for classes in chosen_classes(held, made.batches(held, 0, epoch))
    ]
    assert sorted(firsts[:11]) == sorted(firsts[11:22]) == list(range(11))
    assert firsts[:11] != firsts[11:22]


def test_several_classes_drawn_for_a_batch_take_turns_too():
    drawn = [k for epoch in range(3) for k in near._begins(11, 8, 5, epoch)]
    assert len(drawn) == 24
    assert sorted(drawn[:11]) == sorted(drawn[11:22]) == list(range(11))


def test_it_says_after_how_many_epochs_every_class_was_visited():
    held = columns(11, rows=3)
    said = NearestClasses(4, 2).remarks(held)
    assert said == [
        "each of the 4 batches of an epoch begins with 1 of the 11 classes in turn; all of them "
        "have been visited after 3 epochs"
    ]
    assert "after 2 epochs" in NearestClasses(4, 2, 2).remarks(held)[0]
    assert "after 1 epoch" in HardClasses(1, 2).remarks(held)[0]
    assert HardClasses(4, 5).remarks(held)[1].startswith("11 of 11 classes have fewer than 5 rows")


def test_the_embeddings_decide_and_their_lengths_do_not():
    held = columns()
    made = NearestClasses(4, 2)
    before = [rows.tolist() for rows in made.batches(held, 0, 0)]
    scaled = held | {"embedding": held["embedding"].double() * 2.0**7}
    assert [rows.tolist() for rows in made.batches(scaled, 0, 0)] == before
    turned = held | {"embedding": held["embedding"].roll(1, 0)}
    assert [rows.tolist() for rows in made.batches(turned, 0, 0)] != before


def test_class_means_stand_for_the_rows():
    held = columns()
    means = near.class_means(held["label"], held["embedding"])
    place = torch.unique(held["label"], return_inverse=True)[1]
    for made in (NearestClasses(4, 2), HardClasses(4, 2)):
        by_rows = [rows.tolist() for rows in made.batches(held, 0, 0)]
        by_means = made.batches(held | {"embedding": means[place]}, 0, 0)
        assert [rows.tolist() for rows in by_means] == by_rows


def test_all_classes_may_lie_in_one_place():
    held = columns() | {"embedding": torch.ones(36, 4)}
    for made in (NearestClasses(4, 2), HardClasses(4, 2)):
        for classes in chosen_classes(held, made.batches(held, 0, 0)):
            assert len(set(classes)) == 4


@pytest.mark.parametrize("made", [NearestClasses(4, 2), HardClasses(4, 2)])
def test_embeddings_of_zeros_are_told_of_once(made):
    held = columns() | {"embedding": torch.zeros(36, 4)}
    with pytest.warns(UserWarning, match="all embeddings are zeros"):
        made.batches(held, 0, 0)
    assert len(made.batches(held, 0, 1)) == made.count(held, 0, 1)


def test_a_loop_of_ones_own_gives_embeddings_of_any_kind():
    held = columns()
    expected = [rows.tolist() for rows in NearestClasses(4, 2).batches(held, 0, 0)]
    z = held["embedding"]
    names = [f"class {k + 7:02}" for k in held["label"].tolist()]
    for given in (z, z.numpy(), z.clone().requires_grad_() * 1, z.tolist()):
        own = sampler(
            "nearest_classes", {"label": names, "embedding": given}, classes=4, per_class=2
        )
        assert list(own) == expected


@pytest.mark.parametrize(
    ("embedding", "said"),
    [
        (torch.zeros(36), "the column 'embedding' must be a floating tensor"),
        (torch.zeros(36, 2, dtype=torch.int64), "the column 'embedding' must be a floating tensor"),
        (
            torch.full((36, 2), torch.nan),
            "'embedding' holds NaN or infinity .first in row 0.; mend these rows",
        ),
        (torch.zeros(35, 2), "one entry a row in every column"),
    ],
)
def test_other_embeddings_are_refused(embedding, said):
    given = {"label": columns()["label"], "embedding": embedding}
    with pytest.raises(ValueError, match=said):
        sampler("hard_classes", given, classes=4, per_class=2)


def test_labels_alone_do_not_do():
    with pytest.raises(ValueError, match="'hard_classes' reads the column 'embedding'"):
        sampler("hard_classes", [0, 0, 1, 1], classes=2, per_class=2)


def test_classes_of_a_batch_are_near_each_other_and_those_of_balanced_batches_are_not():
    held = columns(60, dim=8)
    means = F.normalize(near.class_means(held["label"], held["embedding"]), dim=1)
    cosine = (means @ means.T).fill_diagonal_(0)

    def closeness(name):
        own = sampler(name, held, classes=6, per_class=2)
        found = [cosine[k][:, k].sum() / 30 for k in map(torch.tensor, chosen_classes(held, own))]
        return float(torch.stack(found).mean())

    assert closeness("balanced") < 0.1
    assert closeness("nearest_classes") > 0.4
    assert closeness("hard_classes") > 0.4
