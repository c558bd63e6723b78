"""The critic of distances and its two shapes of alternation."""

import pytest
import torch
import torch.nn.functional as F
from quad4 import LABEL4, LABELS, QUAD4, random_batch

from nearkin.core import Batch
from nearkin.losses.bounds import jsd
from nearkin.objectives.jensen_shannon import AlternatingJensenShannon, JensenShannon

BATCH = Batch(None, label=LABEL4)


pytestmark = pytest.mark.usefixtures("one_thread")


def test_its_loss_is_two_log_two_above_minus_twice_the_divergence():
    z, label = random_batch(LABELS["unbalanced"])
    objective = JensenShannon(width=8).double()
    terms = objective(z, Batch(None, label=label))
    distance = torch.cdist(F.normalize(z), F.normalize(z))
    same = label[:, None] == label[None]
    off = ~torch.eye(len(label), dtype=torch.bool)
    judged = objective.critic(distance)
    near, far = judged[same & off], judged[~same]
    expected = F.binary_cross_entropy_with_logits(near, torch.ones_like(near))
    expected = expected + F.binary_cross_entropy_with_logits(far, torch.zeros_like(far))
    torch.testing.assert_close(terms.total, expected)


def test_the_judged_comparison_is_given_and_has_no_distance():
    objective = JensenShannon(width=8).double()
    c = objective.judged(QUAD4, BATCH)
    assert c.closeness == "given"
    torch.testing.assert_close(jsd(c).total, objective(QUAD4, BATCH).total)
    with pytest.raises(ValueError, match="has no distance"):
        _ = c.distance


def test_the_critic_works_in_float32_also_under_autocast():
    torch.manual_seed(0)
    objective = JensenShannon(width=8)
    expected = objective(QUAD4.float(), BATCH).total
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(objective(QUAD4.float(), BATCH).total, expected)


def test_the_critic_has_its_turns_on_a_detached_embedding_before_the_encoder():
    objective = JensenShannon(critic_steps=3, width=8).double()
    z = QUAD4.clone().requires_grad_()
    learns = []
    for turn in objective.turns(z, BATCH):
        learns.append(turn.learns)
        z.grad = None
        turn.terms.total.backward()
        assert (z.grad is not None) == (turn.learns == ("encoder",))
    assert learns == [("critic",)] * 3 + [("encoder",)]
    assert list(objective.learners()) == ["critic"]


def test_each_turn_of_the_critic_sees_its_updated_parameters():
    objective = JensenShannon(critic_steps=5, width=16).double()
    descent = torch.optim.SGD(objective.critic.parameters(), 0.05)
    values = []
    for turn in objective.before(QUAD4, BATCH):
        values.append(turn.terms.total.item())
        descent.zero_grad()
        turn.terms.total.backward()
        descent.step()
    assert values == sorted(values, reverse=True)
    assert len(set(values)) == 5


@pytest.mark.parametrize(("steps", "pattern"), [(1, "ESESES"), (2, "ESSESS"), (3, "ESSSES")])
def test_one_turn_a_batch_alternates(steps, pattern):
    objective = AlternatingJensenShannon(critic_steps=steps, width=8).double()
    who = {("encoder",): "E", ("critic",): "S"}
    seen = ""
    for _ in pattern:
        z = QUAD4.clone().requires_grad_()
        (turn,) = objective.turns(z, BATCH)
        seen += who[turn.learns]
    assert seen == pattern


def test_whose_turn_it_is_survives_saving_and_loading():
    one = AlternatingJensenShannon(critic_steps=2, width=8).double()
    list(one.turns(QUAD4, BATCH))
    two = AlternatingJensenShannon(critic_steps=2, width=8).double()
    two.load_state_dict(one.state_dict())
    (turn,) = two.turns(QUAD4, BATCH)
    assert turn.learns == ("critic",)
    assert two(QUAD4, BATCH) is None


def test_a_critic_without_steps_is_refused():
    with pytest.raises(ValueError, match="critic_steps must be at least 1, not 0"):
        JensenShannon(critic_steps=0)
