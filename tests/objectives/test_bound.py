"""A bound with a critic: what each critic scores, whose turns there are, what stands in the log."""

import math

import pytest
import torch
from quad4 import LABEL4, QUAD4, random_batch
from torch.nn.functional import normalize, softplus

import nearkin as nk
from nearkin.compare import AcrossViews, Classifier, InBatch, Memory, Proxies
from nearkin.core import Batch, Terms
from nearkin.losses.bounds import jsd
from nearkin.losses.pairwise import infonce
from nearkin.objectives.base import Critic
from nearkin.objectives.bound import Bound
from nearkin.objectives.critics import Bilinear, Concatenated, Linear, OnDistance, Separable

LABELLED = Batch(None, label=LABEL4)
VIEWS = Batch(None, view=torch.tensor([0, 1, 0, 1]), pair=LABEL4)
CRITICS = {
    "linear": lambda dim: Linear(),
    "on_distance": lambda dim: OnDistance(width=8),
    "bilinear": Bilinear,
    "separable": lambda dim: Separable(dim, width=8),
    "concatenated": lambda dim: Concatenated(dim, width=8),
}


def comparison(dim=5):
    z, label = random_batch([0, 0, 1, 1, 2], dim)
    return InBatch("cosine")(z, Batch(None, label=label))


# What each critic scores, pair by pair


def test_linear_is_a_line():
    c = comparison()
    expected = 4.0 * (c.similarity - 0.25)
    torch.testing.assert_close(Linear(scale=4.0, threshold=0.25).double()(c), expected)


def test_on_distance_falls_by_the_distance_where_its_net_is_nothing():
    critic, c = OnDistance(width=4).double(), comparison()
    with torch.no_grad():
        for parameter in critic.parameters():
            parameter.zero_()
    torch.testing.assert_close(critic(c), -c.distance)


@pytest.mark.parametrize("name", ["bilinear", "separable", "concatenated"])
def test_a_critic_of_rows_scores_each_pair_by_its_two_rows(name):
    torch.manual_seed(0)
    critic, c = CRITICS[name](5).double(), comparison()
    with torch.no_grad():
        critic.get_parameter("bias" if name != "concatenated" else "anchor.bias").fill_(0.3)
        scores = critic(c)
        for i in range(5):
            for j in range(5):
                a, r = c.anchors[i], c.references[j]
                if name == "bilinear":
                    expected = a @ critic.weight @ r + 0.3
                elif name == "separable":
                    expected = critic.anchor(a) @ critic.reference(r) / math.sqrt(8) + 0.3
                else:
                    layer = torch.cat([critic.anchor.weight, critic.reference.weight], 1)
                    expected = critic.net(layer @ torch.cat([a, r]) + 0.3)[0]
                assert scores[i, j].item() == pytest.approx(expected.item())


def test_bilinear_starts_as_the_scaled_similarity():
    c = comparison()
    torch.testing.assert_close(Bilinear(5, scale=7.0).double()(c), 7 * c.similarity)


@pytest.mark.parametrize("name", CRITICS)
def test_every_critic_learns_to_tell_a_task_of_few_rows(name):
    torch.manual_seed(0)
    z, label = random_batch([0, 0, 0, 1, 1, 1], 4, dtype=torch.float32)
    objective = Bound(InBatch(), jsd, CRITICS[name](4))
    batch = Batch(None, label=label)
    optimizer = torch.optim.Adam(objective.critic.parameters(), lr=0.02)
    before = float(objective(z, batch).total.detach())
    for _ in range(40):
        optimizer.zero_grad()
        objective(z, batch).total.backward()
        optimizer.step()
    assert float(objective(z, batch).total.detach()) < min(before, 2 * math.log(2))


# Whose turns


@pytest.mark.parametrize("name", CRITICS)
def test_a_critic_learns_in_the_encoders_turn_or_in_turns_of_its_own(name):
    joint = Bound(InBatch(), jsd, CRITICS[name](2)).double()
    own = Bound(InBatch(), jsd, CRITICS[name](2), critic_steps=2).double()
    z = QUAD4.clone().requires_grad_()
    assert [t.learns for t in joint.turns(z, LABELLED)] == [("encoder", "objective", "critic")]
    critic, both = ("critic",), ("encoder", "objective")
    assert [t.learns for t in own.turns(z, LABELLED)] == [critic, critic, both]


def test_own_turns_see_the_critic_moved():
    objective = Bound(InBatch(), jsd, Linear(), critic_steps=2).double()
    z = QUAD4.clone().requires_grad_()
    said = []
    for turn in objective.turns(z, LABELLED):
        said.append(float(turn.terms.total.detach()))
        if turn.learns == ("critic",):
            (slope,) = torch.autograd.grad(turn.terms.total, objective.critic.threshold)
            with torch.no_grad():
                objective.critic.threshold -= 0.05 * slope
    assert said[0] > said[1] > said[2]
    assert objective.critic.threshold.grad is None


def test_without_a_critic_it_is_the_loss_of_the_similarity():
    terms = Bound(InBatch(), infonce)(QUAD4, LABELLED)
    expected = infonce(InBatch("cosine")(QUAD4, LABELLED))
    torch.testing.assert_close(terms.total, expected.total)
    assert set(Bound(InBatch(), infonce).learners()) == {"objective"}


def test_proxies_make_it_a_bound_between_embeddings_and_labels():
    objective = Bound(Proxies(classes=3, dim=2), jsd, Linear()).double()
    terms = objective(QUAD4, LABELLED)
    cosine = normalize(QUAD4) @ normalize(objective.compare.vectors.detach()).T
    score = 10 * (cosine - 0.5)
    same = torch.nn.functional.one_hot(LABEL4, 3).bool()
    expected = softplus(-score[same]).mean() + softplus(score[~same]).mean()
    torch.testing.assert_close(terms.total.detach(), expected)
    assert [p.shape for p in objective.learners()["objective"].parameters()] == [(3, 2)]


def test_a_memory_takes_the_batch_in_after_the_turn():
    objective = Bound(Memory(dim=2, size=8), infonce, Bilinear(2)).double()
    for _ in objective.turns(QUAD4.clone().requires_grad_(), LABELLED):
        assert int(objective.compare.written) == 0
    assert int(objective.compare.written) == 4


def test_it_is_made_by_name_for_a_loop_of_ones_own():
    settings = {"compare": {"proxies": {}}, "loss": "jsd", "critic": "bilinear"}
    objective = nk.objective("bound", **settings, classes=2, dim=2)
    z = QUAD4.float().requires_grad_()
    (turn,) = objective.turns(z, LABEL4)
    turn.terms.total.backward()
    assert z.grad.abs().sum() > 0
    moved = {name for name, each in objective.named_parameters() if each.grad.abs().sum() > 0}
    assert {name.rsplit(".", 1)[-1] for name in moved} >= {"weight", "vectors"}


# The log


def test_the_bound_of_infonce_is_at_most_its_ceiling_and_reaches_it_where_all_is_clear():
    z = torch.eye(4, dtype=torch.float64).repeat_interleave(2, 0)
    batch = Batch(None, view=torch.arange(8) % 2, pair=torch.arange(8) // 2)
    objective = Bound(AcrossViews(anchors="both"), infonce, Bilinear(4, scale=30.0)).double()
    said = objective.diagnosis(z, batch)
    assert said["bound_ceiling"] == pytest.approx(2)  # one of four
    assert said["bound_bits"] == pytest.approx(2, abs=1e-6)


def test_the_bound_of_jsd_is_nothing_for_a_critic_of_zeros_and_one_bit_at_most():
    critic = Bilinear(2).double()
    with torch.no_grad():
        critic.weight.zero_()
    said = Bound(InBatch(), jsd, critic).double().diagnosis(QUAD4, LABELLED)
    assert said["bound_bits"] == pytest.approx(0)
    assert said["bound_ceiling"] == 1
    far = torch.tensor([[1.0, 0], [1, 0], [-1, 0], [-1, 0]], dtype=torch.float64)
    clear = Bound(InBatch(), jsd, Linear(scale=50.0, threshold=0.0)).double()
    assert clear.diagnosis(far, LABELLED)["bound_bits"] == pytest.approx(1)


@pytest.mark.parametrize("name", CRITICS)
def test_pull_and_push_are_slopes_by_what_the_critic_reads(name):
    torch.manual_seed(0)
    objective = Bound(InBatch(), jsd, CRITICS[name](2)).double()
    said = objective.diagnosis(QUAD4, LABELLED)
    assert said["pull"] > 0
    assert said["push"] > 0
    if name == "linear":
        c = objective.compare(QUAD4, LABELLED)
        score = 10 * (c.similarity - 0.5)
        assert said["pull"] == pytest.approx(10 * torch.sigmoid(-score[c.same]).mean().item())


def test_a_loss_of_ones_own_has_no_bits():
    def own(c):
        return Terms(tightness=-c.similarity[c.same].mean())

    assert set(Bound(InBatch(), own).diagnosis(QUAD4, LABELLED)) == {"pull", "push"}


# Wrong settings


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Bound(InBatch(), jsd, critic_steps=1), "there is no critic"),
        (lambda: Bound(InBatch(), jsd, Linear(), critic_steps=-1), "at least 0"),
        (lambda: Linear(scale=0.0), "scale"),
        (lambda: Bilinear(0), "dim must be at least 1"),
        (lambda: Separable(3, width=0), "width must be at least 1"),
        (lambda: AcrossViews(anchors="left"), "first, second or both"),
    ],
)
def test_wrong_settings_are_named(make, said):
    with pytest.raises(ValueError, match=said):
        make()


def test_a_classifier_with_a_bias_has_two():
    objective = Bound(Classifier(3, 2, closeness="inner"), jsd, Bilinear(2)).double()
    with pytest.raises(ValueError, match="set bias: false"):
        objective(QUAD4, LABELLED)
    Bound(Classifier(3, 2, bias=False, closeness="inner"), jsd, Bilinear(2)).double()(
        QUAD4, LABELLED
    )


def test_a_critic_must_say_how_it_scores():
    with pytest.raises(TypeError, match="must return scores"):
        Critic()(comparison())
