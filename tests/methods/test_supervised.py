"""Supervised: an encoder and its objective's turns; and how far embeddings are from collapse."""

import pytest
import torch
from torch import nn

from nearkin.compare import Classifier, Memory
from nearkin.core import Batch
from nearkin.encoders.base import Given
from nearkin.losses.classification import cross_entropy
from nearkin.losses.pairwise import contrastive
from nearkin.methods.base import Method, Supervised, spread
from nearkin.objectives.compared import Compared


def rows(*values):
    return torch.tensor(values, dtype=torch.float32)


def test_rows_that_point_the_same_way_have_cosine_one_and_rank_one():
    said = spread(rows([1, 2], [2, 4], [0.5, 1]))
    assert said["cosine_mean"] == pytest.approx(1)
    assert said["effective_rank"] == pytest.approx(1, abs=1e-3)


def test_orthogonal_rows_have_cosine_zero_and_full_rank():
    said = spread(3 * torch.eye(4, 6))
    assert said["cosine_mean"] == pytest.approx(0)
    assert said["effective_rank"] == pytest.approx(4)


def test_the_mean_cosine_is_that_of_ordered_pairs_of_different_rows():
    # Cosines of the three pairs: 0, 1/sqrt 2, 1/sqrt 2.
    assert spread(rows([1, 0], [0, 5], [1, 1]))["cosine_mean"] == pytest.approx(2**0.5 / 3)


@pytest.mark.parametrize("shape", [(20, 5), (5, 20), (7, 7)])
def test_the_effective_rank_is_the_exponential_entropy_of_the_singular_values(shape):
    z = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(nn.functional.normalize(z.double(), dim=1))
    share = values / values.sum()
    expected = (-(share * share.log()).sum()).exp()
    assert spread(z)["effective_rank"] == pytest.approx(expected.item(), rel=1e-5)


def test_one_row_has_no_pairs():
    assert spread(rows([1, 2]))["cosine_mean"] == 0


class Doubling(Given):
    def augment(self, x, keys):
        return x * keys[:, None]


def method():
    torch.manual_seed(0)
    return Supervised(Doubling(nn.Linear(3, 2), 2), Compared(Classifier(4, 2), cross_entropy))


def batch():
    return Batch(torch.ones(5, 3), label=torch.arange(5) % 4, key=torch.arange(5))


def test_the_encoder_sees_augmented_rows_in_training_and_plain_ones_in_retrieval():
    chosen, seen = method(), []
    chosen.encoder.module.register_forward_hook(lambda m, args, out: seen.append(args[0]))
    next(iter(chosen.turns(batch())))
    chosen.embed(batch().inputs)
    assert torch.equal(seen[0][:, 0], torch.arange(5.0))
    assert torch.equal(seen[1], torch.ones(5, 3))


def test_a_turn_trains_encoder_and_objective_and_its_diagnosis_follows():
    chosen = method()
    list(chosen.turns(batch()))
    assert chosen.diagnosis() == {}, "nobody watched"
    chosen.watched = True
    (turn,) = list(chosen.turns(batch()))
    assert turn.learns == ("encoder", "objective") == tuple(chosen.learners())
    assert turn.terms.total.requires_grad
    said = chosen.diagnosis()
    assert set(said) == {"pull", "push", "cosine_mean", "effective_rank"}
    assert said["pull"] == pytest.approx(said["push"], abs=1e-5)


def test_bfloat16_ends_before_the_loss():
    chosen = method()
    chosen.precision = "bfloat16"
    inside = []
    chosen.encoder.module.register_forward_hook(lambda m, args, out: inside.append(out.dtype))
    (turn,) = list(chosen.turns(batch()))
    assert inside == [torch.bfloat16]
    assert turn.terms.total.dtype == torch.float32
    assert chosen.embed(torch.ones(2, 3)).dtype == torch.float32
    assert not torch.is_autocast_enabled("cpu")


def test_a_method_that_says_nothing_raises_by_its_name():
    for call in (lambda m: m.learners(), lambda m: m.turns(None), lambda m: m.embed(None)):
        with pytest.raises(TypeError, match="Method says no"):
            call(Method())
    assert Method().round("table", 3) == "table"


def test_the_diagnosis_is_taken_before_a_memory_holds_the_batch():
    chosen = Supervised(Given(nn.Linear(3, 4), 4), Compared(Memory(4, 16), contrastive))
    chosen.watched = True
    distinct = Batch(torch.randn(4, 3), label=torch.arange(4), key=torch.arange(4))
    with pytest.warns(UserWarning, match="no positive pair"):
        list(chosen.turns(distinct))
    assert chosen.diagnosis()["pull"] == 0.0
