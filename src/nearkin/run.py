"""train: assemble a recipe, measure, train, measure again, write the run folder."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shlex
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nearkin import model as models
from nearkin.assemble import OWN, Parts, assemble
from nearkin.catalog import slots_of
from nearkin.config import complete, dump, load_recipe, resolve
from nearkin.console import Reporter, plain, scores_table
from nearkin.data.base import Splits, Table
from nearkin.evaluation import Result
from nearkin.floors import floors, has_features, ranking_metrics
from nearkin.inputs import Inputs
from nearkin.loop import Interrupted, Loop, State
from nearkin.measure import (
    QUICK,
    block,
    distances,
    embed_shares,
    evaluate_table,
    information,
    raw_rows,
)
from nearkin.panel import Panel
from nearkin.report import read_run, write_report
from nearkin.reporting import pictures_of
from nearkin.run_folder import Log, RunFolder, RunFolderError
from nearkin.runtime import barrier, by_first, processes, rank, world
from nearkin.settings import Train

FREE_TO_CHANGE = ("device", "workers")  # settings of `train` that a resumed run may change


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, and what metrics.json says.

    `model` loads the trained encoder.
    """

    folder: Path
    metrics: dict[str, Any]

    @property
    def model(self) -> models.Model:
        """The trained encoder with its preprocessing."""
        return models.load(self.folder)

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})\n{scores_table(self.metrics)}"


def train(
    recipe: str | os.PathLike[str] | Mapping[str, Any] = "glyphs",
    *,
    set: Mapping[str, Any] | Sequence[str] | None = None,
    data: Splits | None = None,
    encoder: nn.Module | None = None,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    force: bool = False,
    trust_code: bool = False,
    reporter: Reporter | None = None,
) -> Run:
    """Train by a recipe, evaluate on classes never seen in training, write a run folder.

    recipe       a bundled name, a YAML file, a folder of images, or a recipe as a dict
    set          changes to the recipe: {"train.epochs": 3} or ["train.epochs=3"]
    data         Splits of your own instead of the recipe's
    encoder      a module (N, ...) -> (N, dim) of your own, with an attribute `dim`
    out          the run folder; default runs/<recipe>
    resume       go on where a stopped run stood; starts if nothing is there
    force        replace a run that stands in the folder
    trust_code   let the recipe import code of yours (`package.module:Name`)
    reporter     hears of the progress; default: plain lines on stderr

    Raises ValueError or OSError for wrong input, before anything is written.
    """
    if resume and force:
        raise ValueError("resume goes on with a run and force replaces it; ask for one of them")
    reporter = reporter or plain()
    name, raw = _named(recipe)
    changes = set if set is not None else ()
    own = {k: OWN for k, v in (("data", data), ("encoder", encoder)) if v is not None}
    resolved = complete(resolve(raw, changes, trust_code=trust_code), trust_code=trust_code)
    folder = RunFolder(out if out is not None else Path("runs") / name)
    with processes():
        if rank() > 0:
            reporter = Reporter(None)
        by_first(lambda: folder.check_free(resume=resume, force=force))
        if by_first(lambda: resume and folder.is_run):
            by_first(lambda: _check_same(folder, {**resolved, **own}))
            if by_first(lambda: folder.finished):
                reporter.say(f"the run in {folder.path} is finished; nothing is left to do")
                return Run(folder.path, folder.json("metrics.json"))
        # A run that was killed before its first checkpoint starts again.
        going_on = by_first(lambda: resume and folder.is_run and folder.state.is_file())
        parts = assemble(
            resolved,
            data=data,
            encoder=encoder,
            trust_code=trust_code,
            fresh=not going_on,
            say=reporter.say,
            progress=reporter.prepared if rank() == 0 else None,
        )
        run = _Run(resolved, own, parts, folder, reporter)
        try:
            return run.go(going_on)
        except Interrupted as stop:
            raise Interrupted(f"{stop}; {_how_to_go_on(folder, own, trust_code)}") from None


def _named(recipe: str | os.PathLike[str] | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """A name for the run folder, and the recipe as it is written."""
    if isinstance(recipe, Mapping):
        return "own", dict(recipe)
    path, text = Path(recipe), os.fspath(recipe)
    if path.is_dir() and (os.sep in text or not _is_bundled(text)):
        name = re.sub(r"[^\w.-]+", "-", path.resolve().name) or "folder"
        return name, {**load_recipe("folder"), "data": {"folder": {"path": str(path.resolve())}}}
    return path.stem if path.suffix in (".yaml", ".yml") else text, load_recipe(text)


def _is_bundled(name: str) -> bool:
    from nearkin.catalog import recipe_files

    return name in recipe_files()


def _how_to_go_on(folder: RunFolder, own: Mapping[str, str], trust_code: bool) -> str:
    if own:
        return f"go on with nearkin.train(..., out={os.fspath(folder.path)!r}, resume=True)"
    many = f"torchrun --nproc-per-node {os.environ.get('LOCAL_WORLD_SIZE', world())} -m nearkin"
    words = many.split() if world() > 1 else ["nearkin"]
    words += ["train", str(folder.path / "recipe.yaml"), "--out", str(folder.path), "--resume"]
    words += ["--trust-code"] if trust_code else []
    return f"go on with: {shlex.join(words)}"


def _check_same(folder: RunFolder, recipe: Mapping[str, Any]) -> None:
    """Raise unless the run that stands here was started with this recipe."""
    if not (folder.path / "recipe.yaml").is_file():
        return  # killed while the folder was made
    before = load_recipe(folder.path / "recipe.yaml")
    # What a run of an older version did not know has its default.
    known = {key: slot.default for key, slot in slots_of(Train).items()}
    for key in sorted({*before, *recipe}):
        old, new = before.get(key), recipe.get(key)
        if key == "train":
            old = {k: v for k, v in {**known, **(old or {})}.items() if k not in FREE_TO_CHANGE}
            new = {k: v for k, v in {**known, **(new or {})}.items() if k not in FREE_TO_CHANGE}
        if old != new:
            raise RunFolderError(
                f"the run in {folder.path} was started with another recipe (they differ in "
                f"{key!r}); resume it with its own, {folder.path / 'recipe.yaml'} "
                f"(--out {folder.path}), or replace it with --force"
            )


class _Run:
    """One run, from the first measurement to the report."""

    def __init__(
        self,
        recipe: dict[str, Any],
        own: dict[str, str],
        parts: Parts,
        folder: RunFolder,
        reporter: Reporter,
    ):
        self.recipe, self.own, self.parts = recipe, own, parts
        self.folder, self.reporter = folder, reporter
        self.metrics: list[str] = list(recipe["evaluate"])
        self.seed: int = recipe["seed"]
        self.first = rank() == 0
        self.panel = Panel(parts.splits, self.embedded, self.seed)

    def go(self, going_on: bool) -> Run:
        parts, train = self.parts, self.parts.train
        select = None if train.select == "last" else f"{train.select} {train.select_by}"
        if train.select == "validation" and parts.splits.validation is None:
            raise ValueError(
                "train.select is validation, but the data have no validation split; set "
                "train.select=last"
            )
        loop = Loop(
            parts.method,
            parts.optimizers,
            parts.schedule,
            parts.sampler,
            epochs=train.epochs,
            steps=train.steps,
            seed=self.seed,
            device=parts.device,
            freeze=parts.freeze,
            clip=train.clip,
            patience=train.early_stop,
            later_wins=train.select == "best_on_test",
            put_back=train.select == "validation",
            path=self.folder.state,
        )
        if going_on:
            self.resume(loop)
            self.check_data(loop.state.notes)
            self.reporter.say(
                f"going on at step {loop.state.step} of the run in {self.folder.path}"
            )
        else:
            self.check_validation()
            loop.state.notes = {**self.measure_before(), "data": self.data_stamp()}
        loop.on_step = self.reporter.step(*train.length(self.batches()))
        log = None
        try:
            log = self.open(going_on, loop)
            barrier()
            with _warnings_to(loop, self.reporter):
                self.panel.start(loop)
                validate = partial(self.validate, loop)
                state = loop.run(parts.splits.train, validate, select)
            return self.finish(state, loop, select)
        except Interrupted:
            raise
        except KeyboardInterrupt:
            raise Interrupted("interrupted; the last state was saved before this step") from None
        except Exception:
            # What fails at its first step has made no run; later the state is worth keeping.
            if self.first and loop.state.step == 0:
                self.folder.clear()
            raise
        finally:
            if log is not None:
                log.close()

    def resume(self, loop: Loop) -> None:
        """Stand where the run stood; raise if its inputs were prepared with other weights."""
        fixed = self.parts.encoder.fixed()
        built = {} if fixed is None else fixed.state_dict()
        built = {name: value.clone() for name, value in built.items()}
        loop.resume(self.folder.state)
        kept = {} if fixed is None else fixed.state_dict()
        if any(not torch.equal(value, kept[name]) for name, value in built.items()):
            raise RunFolderError(
                f"the frozen trunk has other weights than when the run in {self.folder.path} was "
                "started; give the same ones, or start anew with --force"
            )

    def open(self, going_on: bool, loop: Loop) -> Log | None:
        """Make the run folder, or go on in it (the first process does); the loop's log is open
        then."""
        if not self.first:
            return None
        if going_on:
            self.folder.sweep()
            self.check_hardware()
        else:
            self.folder.open(dump({**self.recipe, **self.own}), self.seed, world())
        log = Log(self.folder.path / "log.jsonl", loop.state.logged)
        loop.log = log
        if not going_on:
            loop.state.logged = self.log_start(loop)
            loop.save()
        return log

    def data_stamp(self) -> str:
        """A stamp of the training rows: the same ids, labels and columns give the same stamp."""
        table = self.parts.splits.train
        hashed = hashlib.sha256("\n".join(table.ids).encode())
        for column in (table.label, *table.columns.values()):
            hashed.update(column.numpy().tobytes())
        return hashed.hexdigest()[:16]

    def check_data(self, notes: Mapping[str, Any]) -> None:
        """Raise if the training rows are others than when the run was started."""
        if notes.get("data") != self.data_stamp():
            raise RunFolderError(
                f"the training data have changed since the run in {self.folder.path} was started; "
                "bring them back as they were, or start anew with --force"
            )

    def check_validation(self) -> None:
        """Raise before the first step if validation has nothing to score."""
        table = self.parts.splits.validation
        if table is not None and self.parts.train.select == "validation":
            try:
                evaluate_table(self.embedded(table), table, QUICK, "cosine", self.seed)
            except ValueError as error:
                raise ValueError(f"the validation split cannot be scored: {error}") from None

    def check_hardware(self) -> None:
        """Say where a resumed run may differ in the last digits from an uninterrupted one."""
        before = self.folder.check_format()
        for what, now in (("threads", torch.get_num_threads()), ("processes", world())):
            if before.get(what) not in (None, now):
                self.reporter.say(
                    f"the run was started with {before[what]} {what} and goes on with {now}: its "
                    "numbers may differ in the last digits"
                )

    def embedded(self, table: Table) -> Tensor:
        method, device = self.parts.method, self.parts.device
        precision = self.parts.train.precision
        return embed_shares(method, method.embed, self.inputs(table), device, precision)

    def inputs(self, table: Table) -> Inputs:
        assert isinstance(table.inputs, Inputs)
        return table.inputs

    def measure_before(self) -> dict[str, Any]:
        """The test split before the first step: untrained, and by the raw inputs."""
        self.reporter.say("measuring the untrained encoder and the raw inputs")
        test = self.parts.splits.test
        z = self.embedded(test)
        found = {
            "untrained": block(z, test, self.metrics, self.seed),
            "distances": distances(z, _relevant(test), self.seed),
        }
        if has_features(test):
            self.reporter.say("measuring what the features give without training")
            splits = self.parts.splits
            below = floors(splits.train, splits.validation, test, self.metrics, self.seed)
            return {**found, "raw": below["raw"], "floors": below}
        # Clusters and probes of thousands of pixels cost more than they tell.
        ranked = ranking_metrics(self.metrics)
        raw = block(raw_rows(self.inputs(test)), test, ranked, self.seed, ("cosine",))
        return {**found, "raw": raw}

    def batches(self) -> int:
        """Batches of an epoch."""
        table = self.parts.splits.train
        columns = {"label": table.label, **table.columns}
        return self.parts.sampler.count(columns, self.seed, 0)

    def log_start(self, loop: Loop) -> int:
        table = self.parts.splits.train
        columns = {"label": table.label, **table.columns}
        epochs, steps = self.parts.train.length(self.batches())
        start = {
            "event": "start",
            "steps": steps,
            "epochs": epochs,
            "rows": len(table),
            "classes": table.classes,
            "coverage": "; ".join(self.parts.sampler.remarks(columns)),
            "panel": self.panel.remark(),
        }
        loop.log(start)
        before = loop.state.notes["distances"]
        return loop.log({"event": "distances", "when": "untrained", **before})

    def validate(self, loop: Loop, epoch: int) -> dict[str, Any]:
        """Scores after an epoch; "score" is what selection goes by."""
        parts, train = self.parts, self.parts.train
        said: dict[str, Any] = parts.method.recorded()
        z: Tensor | None = None
        wanted = list(dict.fromkeys([*QUICK, train.select_by]))
        if parts.splits.validation is not None:
            table = parts.splits.validation
            z = self.embedded(table)
            result = evaluate_table(z, table, wanted, "cosine", self.seed)
            said["validation"] = {name: result[name] for name in wanted}
            if "information" in self.metrics:
                said["information"] = information(z, table.label, self.seed)
        if train.select == "validation":
            said["score"] = said["validation"][train.select_by]
        if train.select == "best_on_test":
            result = self.quick_test(wanted)
            said["test"] = {name: result[name] for name in wanted}
            said["score"] = said["test"][train.select_by]
        self.panel.follow(loop, epoch, z)
        if self.first:
            self.reporter.epoch(epoch, said.get("test") or said.get("validation"))
        return said

    def quick_test(self, metrics: list[str]) -> Result:
        test = self.parts.splits.test
        return evaluate_table(self.embedded(test), test, metrics, "cosine", self.seed)

    def finish(self, state: State, loop: Loop, select: str | None) -> Run:
        """Measure the selected epoch and write everything, the report last: it says that the run is
        finished."""
        parts = self.parts
        self.reporter.say("measuring on classes never seen in training")
        z = self.embedded(parts.splits.test)
        loop.log(
            {
                "event": "distances",
                "when": "trained",
                **distances(z, _relevant(parts.splits.test), self.seed),
            }
        )
        if state.idle:
            loop.log(
                {"event": "warning", "message": f"{state.idle} turns had nothing to learn from"}
            )
        metrics: dict[str, Any] = {"test": block(z, parts.splits.test, self.metrics, self.seed)}
        if parts.splits.validation is not None:
            validation = parts.splits.validation
            metrics["validation"] = block(
                self.embedded(validation), validation, self.metrics, self.seed
            )
        metrics |= {k: state.notes[k] for k in ("untrained", "raw", "floors") if k in state.notes}
        metrics["selected"] = {"epoch": state.epoch - 1, "by": "last epoch"}
        best, by = state.best, parts.train.select_by
        if best and parts.train.select == "validation":
            metrics["selected"] = {"epoch": int(best["epoch"]), "by": f"validation {by}"}
        if best and parts.train.select == "best_on_test":
            chosen = {"epoch": int(best["epoch"]), "by": f"test {by} (the test classes chose it)"}
            metrics["best_on_test"] = {**self.block_of(loop.selected or {}), **chosen}
        metrics["seconds"] = round(state.seconds, 3)
        if self.first:
            self.write(z, metrics)
        barrier()
        return Run(self.folder.path, metrics)

    def block_of(self, weights: Mapping[str, Tensor]) -> dict[str, Any]:
        """The test block with other weights of the method; its own come back after it."""
        method, test = self.parts.method, self.parts.splits.test
        own = {name: tensor.clone() for name, tensor in method.state_dict().items()}
        method.load_state_dict(dict(weights))
        said = block(self.embedded(test), test, self.metrics, self.seed)
        method.load_state_dict(own)
        return said

    def write(self, z: Tensor, metrics: dict[str, Any]) -> None:
        parts, test = self.parts, self.parts.splits.test
        everyone = torch.ones(len(test), dtype=torch.bool)
        self.folder.write_arrays(
            "embeddings.npz",
            embeddings=z.numpy().astype(np.float32),
            labels=test.label.numpy(),
            names=np.array(test.names),
            ids=np.array(test.ids),
            relevant=_relevant(test).numpy(),
            is_query=test.columns.get("is_query", everyone).numpy(),
            is_gallery=test.columns.get("is_gallery", everyone).numpy(),
            **({"group": test["group"].numpy()} if "group" in test.columns else {}),
        )
        if parts.splits.left_out:
            lines = "".join(f"{path}\t{reason}\n" for path, reason in parts.splits.left_out)
            self.folder.write_text("left_out.txt", lines)
        objective = nn.ModuleDict(
            {k.replace(".", "_"): m for k, m in parts.method.learners().items() if k != "encoder"}
        )
        models.save(
            self.folder,
            parts.encoder,
            objective,
            parts.encoder_node,
            parts.facts,
            parts.train.precision,
            parts.splits.train.names,
        )
        self.folder.write_json("metrics.json", metrics)
        view = read_run(self.folder.path, self.pictures())
        write_report([view], self.folder.path / "report.html")

    def pictures(self) -> Callable[[int], Any] | None:
        """Test row -> its picture, also where the encoder was trained on features of it."""
        parts, test = self.parts, self.parts.splits.test
        if has_features(test):
            test = replace(test, inputs=parts.encoder.seen(parts.given.inputs, parts.train.workers))
        return pictures_of(test)


@contextlib.contextmanager
def _warnings_to(loop: Loop, reporter: Reporter) -> Iterator[None]:
    """Warnings of training as lines of the log and as plain sentences."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        reporter.say(f"warning: {message}")
        loop.state.logged = loop.log({"event": "warning", "message": str(message)})

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def _relevant(table: Table) -> Tensor:
    return table.columns.get("relevant", table.label)
