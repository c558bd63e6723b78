"""What is nearly always a mistake is said once, and what only looks like one is not: parameters,
labels, temperatures."""

import copy
import warnings

import pytest
import torch
from torch import nn

import nearkin as nk
from nearkin import guards
from nearkin.core import Batch, Comparison, Terms, home
from nearkin.guards import Watch

DIM, CLASSES = 6, 4


def rows(n=12, dim=DIM, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, dim, generator=generator)


def labels(n=12):
    return torch.arange(n) % CLASSES


def made(name="proxy_anchor", **settings):
    torch.manual_seed(0)
    return nk.criterion(name, classes=CLASSES, dim=DIM, **settings)


def heard(step, times=1):
    """What is said in so many calls of `step`."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(times):
            step()
    return [str(warning.message) for warning in said]


# --- parameters that no optimizer moves


class Loop:
    """A loop of one's own around an encoder: `gathered` batches before one step."""

    def __init__(self, criterion, optimizer, gathered=1, encoder=None):
        torch.manual_seed(1)
        self.encoder = encoder or nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, DIM))
        self.criterion, self.gathered, self.batch = criterion, gathered, 0
        self.optimizers = optimizer(list(self.encoder.parameters()), list(criterion.parameters()))

    def __call__(self):
        z = self.encoder(rows(dim=5, seed=self.batch))
        (self.criterion(z, labels()) / self.gathered).backward()
        self.batch += 1
        if self.batch % self.gathered == 0:
            for optimizer in self.optimizers:
                optimizer.step()
                optimizer.zero_grad()


SGD, ADAM = torch.optim.SGD, torch.optim.AdamW


def together(make, **settings):
    return lambda encoder, loss: [make([*encoder, *loss], **settings)]


def encoder_alone(make=SGD, **settings):
    return lambda encoder, loss: [make(encoder, **settings)]


OPTIMIZERS = {
    "sgd": together(SGD, lr=0.1),
    "momentum": together(SGD, lr=0.1, momentum=0.9),
    "adam": together(ADAM, lr=1e-3),
    "fused adam": together(ADAM, lr=1e-3, fused=True),
    "fused sgd": together(SGD, lr=1e-3, fused=True),
    "foreach adam": together(ADAM, lr=1e-3, foreach=True),
    "two": lambda encoder, loss: [SGD(encoder, lr=0.1), ADAM(loss, lr=1e-3)],
}


@pytest.mark.parametrize("gathered", [1, 2, 4])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", ["proxy_anchor", "cross_entropy"])
def test_parameters_in_an_optimizer_are_not_told_of(name, optimizer, gathered):
    loop = Loop(made(name), OPTIMIZERS[optimizer], gathered)
    before = copy.deepcopy(loop.criterion.state_dict())
    assert heard(loop, 20) == []
    assert all((before[key] != now).any() for key, now in loop.criterion.state_dict().items())


@pytest.mark.parametrize("optimizer", [SGD, ADAM])
@pytest.mark.parametrize("name", ["proxy_anchor", "cross_entropy"])
def test_parameters_that_no_optimizer_holds_are_told_of_in_the_third_batch(name, optimizer):
    criterion = made(name)
    loop = Loop(criterion, encoder_alone(optimizer, lr=0.01))
    assert heard(loop, 2) == []
    said = heard(loop)
    assert len(said) == len(list(criterion.parameters()))
    assert all("did not move; is it in your optimizer? add criterion.par" in each for each in said)
    assert heard(loop, 10) == []


def test_gradients_gathered_over_batches_are_told_of_after_two_steps():
    loop = Loop(made(), encoder_alone(lr=0.1), gathered=4)
    assert heard(loop, 4) == []
    assert len(heard(loop)) == 1


@pytest.mark.parametrize("gathered", [1, 4])
@pytest.mark.parametrize("early", [True, False])
def test_a_classifier_of_zeros_that_holds_its_encoder_still_is_told_of(early, gathered):
    # It gives the encoder no slope, so that nothing moves at all.
    criterion, batch = made("cross_entropy"), [0]
    encoder = nn.Linear(5, DIM)
    optimizer = SGD(encoder.parameters(), lr=0.1)

    def step():
        loss = criterion(encoder(rows(dim=5, seed=batch[0])), labels())
        batch[0] += 1
        first, last = batch[0] % gathered == 1 % gathered, batch[0] % gathered == 0
        if early and first:
            optimizer.zero_grad()
        loss.backward()
        if last:
            optimizer.step()
            if not early:
                optimizer.zero_grad()

    said = heard(step, gathered)
    assert said == []
    assert {each.split("'")[1] for each in heard(step, 2 + gathered)} == {
        "compared.compare.weight",
        "compared.compare.bias",
    }


def test_gradients_that_are_never_zeroed_are_told_of_too():
    criterion = made()
    loop = Loop(criterion, encoder_alone(lr=0.1))
    loop.optimizers[0].zero_grad = lambda: None
    assert len(heard(loop, 3)) == 1


def test_a_forgotten_one_of_several_is_named():
    criterion = made("cross_entropy")
    weight = criterion.compared.compare.weight
    loop = Loop(criterion, lambda encoder, loss: [SGD([*encoder, weight], lr=0.1)])
    assert ["compared.compare.bias" in each for each in heard(loop, 6)] == [True]


def test_a_setting_that_learns_and_is_forgotten_is_named():
    criterion = nk.criterion("infonce", learn={"temperature": {"start": 0.1}})
    said = heard(Loop(criterion, encoder_alone(lr=0.1)), 4)
    assert ["compared.learned.temperature" in each for each in said] == [True]


def test_a_schedule_that_begins_at_zero_is_no_sign():
    loop = Loop(made(), together(SGD, lr=0.0))
    assert heard(loop, 5) == []
    loop.optimizers[0].param_groups[0]["lr"] = 0.1
    assert heard(loop, 5) == []


def test_frozen_parameters_are_not_told_of():
    loop = Loop(made().requires_grad_(False), encoder_alone(lr=0.1))
    assert heard(loop, 6) == []


def test_gradients_of_zeros_are_no_sign():
    criterion = made()

    def step():
        (0 * criterion(rows(), labels())).backward()

    assert heard(step, 5) == []


def test_a_parameter_of_many_entries_is_watched_where_its_gradient_is(monkeypatch):
    # Only the last class is in the batch; elsewhere a proxy loss over own rows has no gradient.
    monkeypatch.setattr(guards, "WINDOW", 8)

    @home("proxies", "cosine")
    def gathers(c: Comparison) -> Terms:
        return Terms(tightness=-torch.where(c.same, c.similarity, 0.0).sum())

    last = torch.full((12,), CLASSES - 1)
    criterion = nk.criterion(gathers, classes=CLASSES, dim=DIM)
    optimizer = SGD(criterion.parameters(), lr=0.1)

    def step():
        criterion(rows(), last).backward()
        optimizer.step()
        optimizer.zero_grad()

    assert heard(step, 5) == []
    orphan = nk.criterion(gathers, classes=CLASSES, dim=DIM)
    assert len(heard(lambda: orphan(rows(), last).backward(), 5)) == 1


@pytest.mark.parametrize("zeroed", [True, False])
@pytest.mark.parametrize("requires_grad", [True, False])
def test_embeddings_without_an_encoder_need_two_gradients(zeroed, requires_grad):
    criterion = made()

    def step():
        if zeroed:
            criterion.zero_grad()
        criterion(rows().requires_grad_(requires_grad), labels()).backward()

    assert heard(step, 2) == []
    assert len(heard(step)) == 1
    assert heard(step, 4) == []


def test_an_encoder_of_one_table_bears_witness():
    table = nn.Parameter(rows())

    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = table

        def forward(self, _):
            return self.table

    assert len(heard(Loop(made(), encoder_alone(lr=0.1), encoder=Table()), 3)) == 1
    assert heard(Loop(made(), together(SGD, lr=0.1), gathered=4, encoder=Table()), 12) == []


def test_a_copy_watches_its_own_parameters():
    first = made()
    assert heard(Loop(first, together(SGD, lr=0.1)), 3) == []
    second = copy.deepcopy(first)
    assert len(heard(Loop(second, encoder_alone(lr=0.1)), 3)) == 1


def test_moving_to_another_precision_is_no_sign():
    criterion = made()
    loop = Loop(criterion, together(SGD, lr=0.1))
    assert heard(loop) == []
    loop.encoder.double()
    criterion.double()
    loop.optimizers = [SGD([*loop.encoder.parameters(), *criterion.parameters()], lr=0.1)]
    z = loop.encoder(rows(dim=5).double())
    criterion(z, labels()).backward()
    assert heard(lambda: criterion(z.detach(), labels())) == []


def test_what_has_settled_is_no_longer_compared(monkeypatch):
    looked = []
    moved = guards._Trace.moved
    monkeypatch.setattr(guards._Trace, "moved", lambda trace: looked.append(1) or moved(trace))
    loop = Loop(made(), together(SGD, lr=0.1))
    heard(loop, 3)
    assert looked
    looked.clear()
    heard(loop, 5)
    assert looked == []


def test_an_objective_moved_by_nobody_is_told_of():
    objective = nk.objective("proxy_anchor", classes=CLASSES, dim=DIM)

    def step():
        for turn in objective.turns(rows().requires_grad_(), labels()):
            turn.terms.total.backward()

    assert heard(step, 2) == []
    assert len(heard(step)) == 1


@pytest.mark.parametrize("name", ["jensen_shannon", "alternating_jensen_shannon"])
def test_turns_of_several_players_are_no_sign(name):
    objective = nk.objective(name, width=8, critic_steps=2)
    encoder = nn.Linear(5, DIM)
    players = {"encoder": encoder, **objective.learners()}
    optimizers = {key: SGD(player.parameters(), lr=0.1) for key, player in players.items()}

    def step():
        for turn in objective.turns(encoder(rows(dim=5)), labels()):
            nk.update(turn, optimizers)

    assert heard(step, 8) == []


def test_the_nearest_parameters_of_an_encoder_are_found():
    encoder = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, DIM))
    found = guards._behind(encoder(rows(dim=5)))
    assert {id(p) for p in found} == {id(p) for p in encoder.parameters()}
    deep = nn.Sequential(*[nn.Linear(5, 5) for _ in range(9)])
    near = {id(p) for p in guards._behind(deep(rows(dim=5)))}
    assert {id(p) for p in deep[-1].parameters()} < near <= {id(p) for p in deep[-3:].parameters()}
    assert guards._behind(rows().requires_grad_() * 2) == []
    assert Watch().reached == set()


# --- match bits

BITS = torch.tensor([1, 0, 1, 1, 0, 0, 1, 0])


@pytest.mark.parametrize(
    "bits", [BITS, 2 * BITS - 1, BITS.tolist(), BITS.numpy(), BITS.to(torch.uint8)]
)
@pytest.mark.parametrize("name", ["infonce", "contrastive", "supcon"])
def test_a_match_bit_passed_as_labels_is_told_of_with_the_remedy(name, bits):
    criterion = nk.criterion(name)
    (said,) = heard(lambda: criterion(rows(8), bits), 3)
    assert "all rows of label 1 are positives of each other" in said
    assert "the pair's number as their label" in said
    assert "reference_labels" in said


def test_a_match_bit_against_references_is_told_of():
    criterion = nk.criterion("infonce")
    z, other = rows(8), rows(8, seed=1)
    (said,) = heard(lambda: criterion(z, BITS, references=other, reference_labels=BITS))
    assert "only 0 and 1" in said


def test_a_match_bit_reaches_a_memory_and_an_objective():
    criterion = nk.criterion("infonce", memory=8, dim=DIM)
    assert "only 0 and 1" in heard(lambda: criterion(rows(8), BITS))[0]


def test_a_match_bit_in_an_objectives_turn_is_told_of():
    objective = nk.objective("infonce")
    (said,) = heard(lambda: list(objective.turns(rows(8), BITS)))
    assert "only 0 and 1" in said


@pytest.mark.parametrize(
    "criterion",
    [
        lambda: nk.criterion("infonce", classes=2),
        lambda: nk.criterion("infonce", classes=["no", "yes"]),
        lambda: nk.criterion("proxy_anchor", classes=2, dim=DIM),
        lambda: nk.criterion("cross_entropy", classes=2, dim=DIM),
    ],
)
def test_two_classes_that_are_said_to_be_two_are_no_match_bit(criterion):
    criterion = criterion()
    assert heard(lambda: criterion(rows(8), BITS)) == []


@pytest.mark.parametrize(
    "label",
    [
        [0, 0, 1, 1],  # four rows have two classes by chance
        [0, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 1, 1, 1, 1],
        [1, 2, 1, 2, 1, 2, 1, 2],
        [0, 1, 2, 0, 1, 2, 0, 1],
        [-1, 0, 1, 1, 0, 0, -1, -1],
        ["a", "b", "a", "b", "a", "b", "a", "b"],
        [[1, 0]] * 4 + [[0, 1]] * 4,
    ],
)
def test_other_labels_are_no_match_bit(label):
    criterion = nk.criterion("infonce")
    said = heard(lambda: criterion(rows(len(label)), label))
    assert not any("the labels are only" in each for each in said)


def test_a_match_bit_in_a_part_of_a_sum_is_told_of():
    part = {"compared": {"compare": {"in_batch": {}}, "loss": {"infonce": {}}}}
    objective = nk.objective({"sum": {"parts": {"a": part}}})
    (said,) = heard(lambda: list(objective.turns(rows(8), BITS)))
    assert "the labels are only 0 and 1" in said


def test_a_batch_of_two_classes_after_others_is_no_match_bit():
    criterion = nk.criterion("infonce")
    assert heard(lambda: criterion(rows(8), torch.arange(8) // 2)) == []
    assert heard(lambda: criterion(rows(8), BITS), 3) == []


def test_a_first_batch_that_is_too_small_leaves_the_question_open():
    criterion = nk.criterion("infonce")
    assert heard(lambda: criterion(rows(4), BITS[:4]), 2) == []
    assert len(heard(lambda: criterion(rows(8), BITS), 2)) == 1


# --- batches without a pair


@pytest.mark.parametrize("name", ["infonce", "contrastive", "multi_similarity"])
def test_labels_that_are_all_distinct_are_told_of_once(name):
    criterion, y = nk.criterion(name), torch.arange(12)
    (said,) = heard(lambda: criterion(rows(), y), 4)
    assert said.startswith("a batch holds no positive pair, since each row has a label of its own")
    assert "give both views of an item one label" in said
    assert "balanced sampler" in said


def test_a_batch_without_a_pair_for_other_reasons_is_told_of_in_other_words():
    z = rows(4)
    hot = torch.tensor([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 0]])
    across = nk.objective("compared", compare="across_views", loss="infonce")
    columns = {"view": torch.tensor([0, 0, 1, 1]), "pair": torch.arange(4)}
    (said,) = heard(lambda: list(across.turns(z, **columns)))
    assert "so nothing gathers a class" in said
    lone = nk.criterion("contrastive")
    assert heard(lambda: lone(z, hot)) == []  # the last two rows share a label
    assert heard(lambda: lone(z[:3], hot[:3])) == []  # said already


# --- batches of one class

ONE_CLASS = "a batch holds one class only, so nothing spreads the classes"


@pytest.mark.parametrize(
    "settings", [{}, {"mining": "semi_hard"}, {"memory": 4, "dim": DIM}], ids=str
)
@pytest.mark.parametrize("name", ["contrastive", "infonce", "triplet"])
def test_a_batch_of_one_class_is_told_of_once(name, settings):
    criterion = nk.criterion(name, **settings)
    said = heard(lambda: criterion(rows(), torch.full((12,), 7)), 3)
    assert [each.partition(";")[0] for each in said] == [ONE_CLASS]
    assert "balanced sampler" in said[0]


def test_multi_hot_rows_that_all_share_a_label_are_one_class():
    criterion = nk.criterion("infonce")
    hot = torch.tensor([[1, 0, 1], [1, 1, 0], [1, 0, 0]])
    assert [each.partition(";")[0] for each in heard(lambda: criterion(rows(3), hot))] == [
        ONE_CLASS
    ]
    # One row shares a label with each of the others, and these with none.
    center = torch.tensor([[1, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    assert heard(lambda: nk.criterion("supcon")(rows(4), center)) == []


def test_one_class_is_no_news_where_classes_are_kept():
    criterion = made("proxy_anchor")
    assert heard(lambda: criterion(rows(), torch.zeros(12, dtype=torch.int64))) == []


def test_no_pair_is_zero_where_parts_couple_and_contrast_where_they_do_not():
    z, y = rows().requires_grad_(), torch.arange(12)
    criterion = nk.criterion("infonce")
    heard(lambda: criterion(z, y))
    criterion(z, y).backward()
    assert not z.grad.any()
    assert nk.criterion("contrastive").terms(z, y).tightness == 0


# --- temperatures meant for cosines


@pytest.mark.parametrize(
    ("name", "settings", "setting"),
    [
        ("infonce", {}, "temperature=0.1"),
        ("supcon", {"temperature": 0.05}, "temperature=0.05"),
        ("multi_similarity", {}, "beta=50"),
        ("norm_softmax", {"classes": CLASSES, "dim": DIM}, "temperature=0.05"),
        ("cosface", {"classes": CLASSES, "dim": DIM}, "scale=64"),
        ("proxy_anchor", {"classes": CLASSES, "dim": DIM}, "alpha=32"),
        ("infonce", {"memory": 16, "dim": DIM}, "temperature=0.1"),
        ("recall_at_k", {}, "rank_temperature=0.01"),
    ],
)
def test_long_rows_under_a_temperature_for_cosines_are_told_of(name, settings, setting):
    criterion = nk.criterion(name, closeness="inner", **settings)
    (said,) = heard(lambda: criterion(10 * rows(), labels()), 4)
    assert setting in said
    assert "leave closeness out" in said
    assert f"set {setting.partition('=')[0]}=1" in said


def test_a_log_scale_is_a_scale():
    criterion = nk.criterion("sigmoid", closeness="inner")
    (said,) = heard(lambda: criterion(10 * rows(), labels()))
    assert "log_scale=2.30259" in said
    assert "set log_scale=0" in said


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("margin", {"beta": 40.0}),
        ("alignment_uniformity", {"alpha": 2.0}),
        ("binomial_deviance", {"alpha": 1e-3, "beta": 50.0}),
        ("ranked_list", {"temperature": 1e-3}),
    ],
)
def test_boundaries_and_powers_are_no_scales(name, settings):
    criterion = nk.criterion(name, closeness="euclidean", **settings)
    assert heard(lambda: criterion(10 * rows(), labels())) == []


@pytest.mark.parametrize(
    "name", ["arcface", "sub_center_arcface", "circle", "soft_triple", "tuplet_margin", "nca"]
)
def test_a_loss_that_wants_cosines_alone_says_nothing_before_its_error(name):
    criterion = made(name, closeness="inner")

    def step():
        with pytest.raises(ValueError, match="cosine"):
            criterion(10 * rows(), labels())

    assert heard(step) == []


def test_the_logits_said_are_those_that_are_there():
    z = nn.functional.normalize(rows(), dim=1) * 8
    criterion = nk.criterion("infonce", closeness="inner", temperature=0.2)
    (said,) = heard(lambda: criterion(z, labels()))
    assert "rows of length 8 " in said
    assert "logits of about 320 " in said


def test_distances_of_long_rows_are_told_of_too():
    criterion = nk.criterion("infonce", closeness="euclidean")
    assert "closeness='euclidean'" in heard(lambda: criterion(10 * rows(), labels()))[0]
    stretched = made("proxy_nca_plus_plus", closeness="euclidean")
    assert "scale=3" in heard(lambda: stretched(10 * rows(), labels()))[0]
    shifted = nk.criterion("supcon", closeness="euclidean")
    assert heard(lambda: shifted(rows() / 3 + 100, labels())) == []  # far away, not far apart


def test_a_temperature_that_learns_counts_as_it_is_now():
    warm = {"temperature": {"start": 50.0}}
    criterion = nk.criterion("infonce", closeness="inner", learn=warm)
    assert heard(lambda: criterion(10 * rows(), labels())) == []
    cold = {"temperature": {"start": 0.02}}
    criterion = nk.criterion("infonce", closeness="inner", learn=cold)
    assert "temperature=0.02" in heard(lambda: criterion(10 * rows(), labels()))[0]


@pytest.mark.parametrize(
    "criterion",
    [
        lambda: nk.criterion("infonce"),
        lambda: nk.criterion("infonce", closeness="cosine"),
        lambda: nk.criterion("infonce", closeness="inner", temperature=100.0),
        lambda: nk.criterion("contrastive", closeness="euclidean"),
        lambda: nk.criterion("cross_entropy", classes=CLASSES, dim=DIM),
    ],
)
def test_long_rows_without_such_a_temperature_are_no_mistake(criterion):
    criterion = criterion()
    assert heard(lambda: criterion(10 * rows(), labels()), 3) == []


@pytest.mark.parametrize("temperature", [0.1, 0.01])
def test_rows_that_are_normalized_already_are_no_mistake(temperature):
    z = nn.functional.normalize(rows(), dim=1)
    criterion = nk.criterion("infonce", closeness="inner", temperature=temperature)
    assert heard(lambda: criterion(z, labels()), 3) == []


def test_only_the_first_batches_are_looked_at(monkeypatch):
    criterion = nk.criterion("infonce", closeness="inner")
    short = nn.functional.normalize(rows(), dim=1)
    assert heard(lambda: criterion(short, labels()), guards.EARLY) == []
    assert heard(lambda: criterion(10 * rows(), labels())) == []


def test_an_empty_batch_has_no_length():
    criterion = nk.criterion("contrastive", closeness="euclidean")
    c = criterion.compared.compare(rows(0), Batch(None, label=labels(0)))
    assert not guards.warn_of_large_logits(c, lambda c, *, temperature=0.01: Terms())
