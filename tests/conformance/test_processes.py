"""A step over n processes equals the one-process step on the same global batch, in float64.

Every loss at home, every objective, comparison and mining of the catalog; whoever adds one that is
not built here learns it from the first test.
"""

import socket
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch import nn

import nearkin as nk
from nearkin import checkpoint, runtime
from nearkin.catalog import KINDS, scan
from nearkin.compare import Classifier, InBatch
from nearkin.config import build
from nearkin.core import Batch, Terms, home_of
from nearkin.data.base import Table
from nearkin.encoders.base import Given
from nearkin.learners import optimizers_of
from nearkin.loop import Loop
from nearkin.losses.classification import cross_entropy
from nearkin.losses.pairwise import infonce
from nearkin.measure import embed_shares, evaluate_table
from nearkin.methods.base import Supervised
from nearkin.objectives.base import Objective
from nearkin.objectives.compared import Compared
from nearkin.runtime import begin_step, gather_rows, prepare_encoder, rank, share
from nearkin.sample import Balanced, Paired, Uniform

CLASSES, DIM, STEPS = 6, 4, 4
FACTS = {"classes": CLASSES, "dim": DIM}


def compared(compare, loss, **more):
    return {"compared": {"compare": compare, "loss": loss, **more}}


def at_home(loss):
    home = home_of(loss)
    return compared({home.compare: dict(home.settings)}, {loss.__name__: {}})


# Nodes of a recipe: how each objective is built; losses come at home, one case each.
LOSSES = {f"loss {name}": at_home(loss) for name, loss in scan(KINDS["loss"]).items()}
OBJECTIVES = {
    "compared": compared({"in_batch": {"closeness": "euclidean"}}, {"contrastive": {}}),
    "jensen_shannon": {"jensen_shannon": {"critic_steps": 2, "width": 8}},
    "alternating_jensen_shannon": {"alternating_jensen_shannon": {"critic_steps": 1, "width": 8}},
    "rankmi": {"rankmi": {"k": 1, "warmup": 1, "width": 8, "monotone": 0.1, "slope": 0.1}},
    "center": {"center": {"weight": 0.1}},
    "bound": {
        "bound": {
            "compare": {"proxies": {}},
            "loss": {"jsd": {}},
            "critic": {"bilinear": {}},
            "critic_steps": 1,
        }
    },
    "pce": {"pce": {"lam": 1.0, "detach": False}},
    "embedding_norm": {"embedding_norm": {}},
    "orthogonality": {"orthogonality": {}},
    "uniformity": {"uniformity": {}},
    "sum": {
        "sum": {
            "parts": {
                "slow": {"alternating_jensen_shannon": {"critic_steps": 2, "width": 8}},
                "fast": {"jensen_shannon": {"critic_steps": 1, "width": 8}},
                "rows": compared({"in_batch": {}}, {"infonce": {}}),
                "classes": compared({"classifier": {"dropout": 0.3}}, {"cross_entropy": {}}),
            },
            "weights": {"slow": 0.5, "rows": 0.1},
        }
    },
}
COMPARES = {
    "in_batch": compared({"in_batch": {}}, {"supcon": {}}),
    "across_views": compared({"across_views": {"anchors": "both"}}, {"infonce": {}}),
    "memory": compared({"memory": {"size": 20}}, {"multi_similarity": {}}),
    "proxies": compared({"proxies": {"per_class": 2}}, {"proxy_anchor": {}}),
    "centers": compared({"centers": {"kind": "sums"}}, {"spce": {}}),
    "classifier": compared(
        {"classifier": {"dropout": 0.4}}, {"cross_entropy": {"label_smoothing": 0.1}}
    ),
}
MINING = {
    "hard": compared({"in_batch": {}}, {"triplet": {}}, mining={"hard": {}}),
    "semi_hard": compared({"in_batch": {}}, {"triplet": {}}, mining={"semi_hard": {}}),
    "all": compared({"in_batch": {}}, {"triplet": {}}, mining={"all": {}}),
    "easy_positive": compared({"in_batch": {}}, {"triplet": {}}, mining={"easy_positive": {}}),
    "distance_weighted": compared(
        {"in_batch": {}}, {"triplet": {}}, mining={"distance_weighted": {"farthest": 2.0}}
    ),
    "multi_similarity": compared(
        {"in_batch": {}}, {"multi_similarity": {}}, mining={"multi_similarity": {}}
    ),
}


@pytest.mark.parametrize(
    ("kind", "table"), [("objective", OBJECTIVES), ("compare", COMPARES), ("mining", MINING)]
)
def test_every_member_of_the_catalog_has_a_case(kind, table):
    assert set(scan(KINDS[kind])) == set(table), f"build the new {kind} in the table above"


class Sampled(Objective):
    """Draws negatives and drops features after the gather."""

    def __init__(self):
        super().__init__()
        self.compare, self.dropout = InBatch("cosine"), nn.Dropout(0.3)

    def forward(self, z, batch):
        c = self.compare(self.dropout(z), batch)
        drawn = torch.multinomial(c.different.double(), 2, replacement=True)
        pull = torch.where(c.same, c.similarity, 0.0).sum() / c.same.sum()
        return Terms(tightness=-pull, contrast=c.similarity.gather(1, drawn).mean())


class Halves(nn.Module):
    """One half works in each batch: the parameters of the other have no gradient."""

    def __init__(self):
        super().__init__()
        self.work, self.idle = nn.Linear(8, 8), nn.Linear(8, 8)
        self.register_buffer("time", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        self.time += self.training
        return self.work(x) if int(self.time) % 2 else self.idle(x)


def net(*inner):
    return nn.Sequential(nn.Linear(5, 8), *inner, nn.Tanh(), nn.Linear(8, DIM))


class Pictures(nn.Module):
    """Two BatchNorms over pictures, one of them without scale and shift."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 3, 2), nn.BatchNorm2d(3)
        self.head, self.last = nn.Linear(12, DIM), nn.BatchNorm1d(DIM, affine=False)

    def forward(self, x):
        pictures = torch.cat([x, x[:, :4]], 1).view(-1, 1, 3, 3)
        return self.last(self.head(self.norm(self.conv(pictures)).tanh().flatten(1)))


def classified():
    return Compared(Classifier(CLASSES, DIM), cross_entropy)


def shared_dropout():
    drop = nn.Dropout(0.3)
    return nn.Sequential(nn.Linear(5, 8), drop, nn.Tanh(), drop, nn.Linear(8, DIM))


# name: (encoder, objective, settings of the loop)
ENCODERS = {
    "encoder dropout": (lambda: net(nn.Dropout(0.5)), classified, {}),
    "one dropout used twice": (shared_dropout, classified, {}),
    "batchnorm": (lambda: net(nn.BatchNorm1d(8, momentum=None)), classified, {}),
    "batchnorm of pictures": (Pictures, classified, {}),
    "frozen batchnorm": (Pictures, classified, {"frozen": True}),
    "clip": (net, classified, {"clip": 0.01}),
    "idle half": (lambda: net(Halves()), classified, {"adamw": True}),
    "draws after the gather": (net, Sampled, {}),
    "infonce and batchnorm": (
        lambda: net(nn.BatchNorm1d(8)),
        lambda: Compared(InBatch(), infonce),
        {},
    ),
}


NODES = {
    **LOSSES,
    **{f"{k} by table": v for t in (OBJECTIVES, COMPARES, MINING) for k, v in t.items()},
}
CASES = [*NODES, *ENCODERS]


def rows_of_data():
    generator = torch.Generator().manual_seed(0)
    label = torch.arange(42) % CLASSES
    return Table(
        inputs=torch.randn(42, 5, generator=generator, dtype=torch.float64) + label[:, None] / 3,
        label=label,
        names=tuple(map(str, range(CLASSES))),
        ids=tuple(map(str, range(42))),
        columns={"view": torch.arange(42) % 2, "pair": torch.arange(42) // 2},
    )


def sampler_of(name):
    """Batches whose size neither 2 nor 4 divides, or 2 alone: slices differ by one."""
    if "across_views" in name:
        return Paired(7)
    return Uniform(13) if name in ENCODERS else Balanced(5, 3)


def trained(name):
    """What a few steps of the loop leave of parameters and buffers."""
    torch.manual_seed(3)
    if name in ENCODERS:
        encoder, objective, settings = ENCODERS[name]
        encoder, objective = encoder(), objective()
    else:
        encoder, settings = net(), {}
        objective = build(NODES[name], "objective", FACTS, "objective")
    frozen = [
        m for m in encoder.modules() if isinstance(m, nn.BatchNorm2d) and settings.get("frozen")
    ]
    method = Supervised(Given(prepare_encoder(encoder, frozen), DIM), objective).double()
    make = torch.optim.AdamW if settings.get("adamw") else torch.optim.SGD
    optimizers = optimizers_of(
        method.learners(), {"default": lambda groups: make(groups, lr=0.05, weight_decay=0.1)}
    )
    start = {key: value.clone() for key, value in method.state_dict().items()}
    loop = Loop(
        method,
        optimizers,
        lambda step: 1 / (1 + step),
        sampler_of(name),
        epochs=3,
        seed=5,
        device=torch.device("cpu"),
        clip=settings.get("clip"),
        freeze=frozen,
    )
    loop.run(rows_of_data(), lambda epoch: {}, None)
    assert loop.state.step >= STEPS
    moved = [k for k, v in method.state_dict().items() if not torch.equal(v, start[k])]
    assert moved, "nothing was learned"
    return {key: value.detach().clone() for key, value in method.state_dict().items()}


# A loop of one's own under DistributedDataParallel

CRITERIA = {
    "infonce": {},
    "supcon": {"memory": 16, "dim": DIM},
    "proxy_anchor": {"classes": CLASSES, "dim": DIM},
    "triplet": {"mining": "semi_hard"},
    "cross_entropy": {"classes": CLASSES, "dim": DIM},
    "margin": {"classes": CLASSES, "learn": {"beta": {"start": 0.8, "per": "class"}}},
    "soft_triple": {"classes": CLASSES, "dim": DIM},
    "smooth_ap": {},
    "angular": {},
}


def own_loop(name, against=False):
    """Four steps with a criterion that gathers; `against`: 8 rows are compared with 4 others."""
    torch.manual_seed(4)
    encoder, criterion = net().double(), nk.criterion(name, gather=True, **CRITERIA.get(name, {}))
    criterion = criterion.double()
    model = nn.parallel.DistributedDataParallel(encoder) if runtime.world() > 1 else encoder
    parameters = [*encoder.parameters(), *criterion.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    data = rows_of_data()
    for step in range(4):
        rows = torch.randperm(42, generator=torch.Generator().manual_seed(step))
        parts = rows[:12].split([8, 4]) if against else rows[:13].split(13)
        mine = [part[share(len(part))] for part in parts]
        z = model(data.inputs[torch.cat(mine)]).split([len(part) for part in mine])
        label = [data.label[part] for part in mine]
        if against:
            loss = criterion(z[0], label[0], references=z[1], reference_labels=label[1])
        else:
            loss = criterion(z[0], label[0])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {str(i): p.detach().clone() for i, p in enumerate(parameters)}


# What else processes share


def gathered():
    """Rows of many kinds, from slices that differ in size or are empty, with their gradients."""
    found = {}
    for count in (1, 3, 9):
        whole = torch.arange(count * 2.0).view(count, 2).double()
        mine = whole[share(count)].clone().requires_grad_()
        rows = gather_rows(mine)
        (rows * whole.square()).sum().backward()
        found[f"rows {count}"] = rows.detach()
        assert mine.grad is not None
        found[f"slope {count}"] = gather_rows(mine.grad / runtime.world())
        found[f"flags {count}"] = gather_rows((whole > 2)[share(count)]).long()
        found[f"codes {count}"] = gather_rows((whole.long() << 40)[share(count)])
    return found


def measured():
    """Embeddings and metrics, shared between the processes; also fewer rows than processes."""
    data, found = rows_of_data(), {}
    torch.manual_seed(2)
    encoder = net(nn.BatchNorm1d(8)).double()
    for rows in (3, 7, 42):
        part = data.select(torch.arange(rows) // 2 * 13 % 42)
        z = embed_shares(encoder, encoder, part.inputs, torch.device("cpu"))
        found[f"z {rows}"] = z
        result = evaluate_table(z, part, ["recall@1", "map@r"], "cosine", 0)
        found[f"scores {rows}"] = torch.tensor([result["recall@1"], result["map@r"]])
    return found


def agreed():
    """Numbers that every process must hold alike, and errors that all must raise."""
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    with torch.no_grad():
        module[0].weight.fill_(rank() + 1.0)
        module[1].running_mean.fill_(rank() - 1.0)
    runtime.as_in_first(module)
    begin_step(1, 2)
    own = torch.rand(3)
    gather_rows(runtime.gather(own[None], Batch(None))[0])
    shared = torch.rand(3)
    said = runtime.by_first(lambda: {"from": rank()})
    order = []
    made = runtime.first_then_all(lambda: order.append(1) or rank())
    texts = []
    for kind in (ValueError, FileNotFoundError, ZeroDivisionError):
        try:
            runtime.first_then_all(lambda kind=kind: _raise(kind))
        except Exception as error:
            texts.append(f"{type(error).__name__}: {error}")
    stop = [runtime.any_process(rank() == 0), runtime.any_process(False)]
    return {
        "module": {k: v for k, v in module.state_dict().items() if v.ndim},
        "shared": shared,
        "facts": {"said": said, "made": made, "texts": texts, "stop": stop},
    }


def _raise(kind):
    raise kind("what the first says")


# The processes


def worker(place, world, port, out):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"tcp://127.0.0.1:{port}",
        rank=place,
        world_size=world,
        timeout=timedelta(seconds=60),
    )
    for number, name in enumerate(CASES):
        checkpoint.save(out / f"case {number} {place}", trained(name), {})
    for name in CRITERIA:
        checkpoint.save(out / f"own {name} {place}", own_loop(name), {})
    checkpoint.save(out / f"against {place}", own_loop("contrastive", against=True), {})
    checkpoint.save(out / f"gathered {place}", gathered(), {})
    checkpoint.save(out / f"measured {place}", measured(), {})
    found = agreed()
    tensors = {**found["module"], "shared": found["shared"]}
    checkpoint.save(out / f"agreed {place}", tensors, found["facts"])
    dist.destroy_process_group()


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(
    scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)], ids="{} processes".format
)
def processes(request, tmp_path_factory):
    """(how many, what each left of each part): one start runs everything."""
    out = tmp_path_factory.mktemp(f"processes{request.param}")
    torch.multiprocessing.spawn(
        worker, (request.param, free_port(), out), nprocs=request.param, join=True
    )

    def left(part):
        return [checkpoint.load(out / f"{part} {place}") for place in range(request.param)]

    return request.param, left


pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:n_pairs takes the first two rows"),
]


def assert_close(found, expected):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        a, b = found[key].double(), value.double()
        assert a.shape == b.shape, key
        gap = (a - b).abs().max().item() if a.numel() else 0.0
        assert gap <= 1e-10, f"{key} differs by {gap:.1e}"


@pytest.mark.parametrize("name", CASES)
def test_n_processes_equal_one(processes, name):
    expected = trained(name)
    for found, _ in processes[1](f"case {CASES.index(name)}"):
        assert_close(found, expected)


@pytest.mark.parametrize("name", CRITERIA)
def test_a_criterion_that_gathers_is_right_under_ddps_averaging(processes, name):
    expected = own_loop(name)
    for found, _ in processes[1](f"own {name}"):
        assert_close(found, expected)


def test_a_criterion_compares_with_the_references_of_all_processes(processes):
    expected = own_loop("contrastive", against=True)
    for found, _ in processes[1]("against"):
        assert_close(found, expected)


def test_gathered_rows_stand_in_order_and_pass_their_gradients(processes):
    expected = gathered()
    assert torch.equal(expected["slope 9"].flatten(), torch.arange(18.0).double().square())
    for found, _ in processes[1]("gathered"):
        assert_close(found, expected)


def test_shared_evaluation_equals_that_of_one_process(processes):
    expected = measured()
    for found, _ in processes[1]("measured"):
        assert_close(found, expected)


def test_what_must_be_alike_is_alike_and_errors_of_the_first_are_raised_in_all(processes):
    one = agreed()
    for place, (tensors, facts) in enumerate(processes[1]("agreed")):
        assert torch.equal(tensors["0.weight"], torch.ones(2, 2))
        assert torch.equal(tensors["1.running_mean"], -torch.ones(2))
        assert torch.equal(tensors["shared"], one["shared"])
        assert facts["said"] == {"from": 0}
        assert facts["made"] == place
        first = ["ValueError", "FileNotFoundError", "ZeroDivisionError"]
        kinds = first if place == 0 else ["ValueError", "OSError", "RuntimeError"]
        assert facts["texts"] == [f"{kind}: what the first says" for kind in kinds]
        assert facts["stop"] == [True, False]
