"""Two shapes of alternation through the one loop, each alone and inside a sum: who moves when."""

from test_loop import copied, encoder, loop_of, table, trained, unmoved

from nearkin.methods.base import Supervised
from nearkin.objectives.jensen_shannon import AlternatingJensenShannon, JensenShannon
from nearkin.objectives.rankmi import RankMI
from nearkin.objectives.sum import Sum


def moved_by_step(objective, steps=4, critic="critic"):
    """For each step: which of encoder and critic moved, as "E", "S", "ES" or nothing."""
    method = Supervised(encoder(), objective)
    parts = {"E": method.encoder, "S": method.learners()[critic]}
    seen, before = [], {name: copied(part) for name, part in parts.items()}

    def look(state, batches):
        moved = [
            name
            for name, part in parts.items()
            if unmoved(before[name], part) != set(part.state_dict())
        ]
        seen.append("".join(moved))
        before.update({name: copied(part) for name, part in parts.items()})

    loop = loop_of(method, batch=24, epochs=steps)
    loop.on_step = look
    loop.run(table(), lambda epoch: {}, None)
    return seen


def test_one_turn_a_batch_moves_encoder_and_critic_in_the_order_of_the_paper():
    assert moved_by_step(AlternatingJensenShannon(2, width=4), 7) == list("ESSESSE")


def test_rankmi_alternates_after_its_warm_up():
    assert moved_by_step(RankMI(2, width=4), 7, "statistics") == list("ESSESSE")
    assert moved_by_step(RankMI(1, warmup=2, width=4), 6, "statistics") == list("SSESES")


def test_several_turns_in_one_batch_move_both():
    assert moved_by_step(JensenShannon(2, width=4)) == ["ES"] * 4


def test_both_alternations_keep_their_shape_inside_a_sum():
    def parts():
        return {
            "slow": AlternatingJensenShannon(2, width=4),
            "fast": JensenShannon(1, width=4),
        }

    assert moved_by_step(Sum(parts()), 4, "slow.critic") == ["E", "ES", "ES", "E"]
    assert moved_by_step(Sum(parts()), 4, "fast.critic") == ["ES"] * 4


def test_a_sum_of_alternations_alone_gives_the_encoder_no_turn_in_critic_batches():
    objective = Sum({"a": AlternatingJensenShannon(2, width=4)})
    assert moved_by_step(objective, 5, "a.critic") == list("ESSES")


def test_two_critic_turns_a_batch_move_the_critic_twice():
    learned = []

    class Watched(JensenShannon):
        def turns(self, z, batch):
            for turn in super().turns(z, batch):
                before = copied(self.critic)
                yield turn
                still = unmoved(before, self.critic) == set(before)
                learned.append((turn.learns, "still" if still else "moved"))

    trained(Supervised(encoder(), Watched(2, width=4)), batch=24)
    assert learned == [(("critic",), "moved")] * 2 + [(("encoder",), "still")]
