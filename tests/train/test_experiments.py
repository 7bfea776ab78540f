"""An experiment from a synthetic subject to its page: made once, gone on with, and honest in its words."""

from __future__ import annotations

import json
import re
import shutil
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from nsd import Layout
from realtime.bundle.spec import Window
from train.__main__ import main
from train.checkpoints.checkpoint import read_info
from train.errors import TrainError
from train.evaluation.results_table import METRICS, NotComputed
from train.experiments import workbench
from train.experiments.catalogue import (
    OFFSETS,
    SUBJECTS,
    baseline,
    brain_modules,
    by_length,
    by_preprocessing,
    every_window,
    finetunings,
    general,
    linear,
    models_of,
    new_subject,
    of_betas,
    several_subjects,
    specialised,
    with_the_papers_loss_and_dropout,
)
from train.experiments.entries import HEADLINES, Entry, entry_of
from train.experiments.figures import Learned
from train.experiments.findings import Report
from train.experiments.headway import Progress, is_made
from train.experiments.page import write_page
from train.experiments.run import EXPERIMENTS, run_experiments
from train.experiments.schedule import Job, _State, jobs_of, soonest_first
from train.experiments.verdicts import Finding
from train.experiments.workbench import Probe, Workbench
from train.model.base_model import load_unet
from train.recipe import Plateau, Recipe, read_recipe
from train.store.fingerprints import recipe_differences


@pytest.fixture(scope="module")
def recipe(tiny_recipe: Recipe) -> Recipe:
    replace = msgspec.structs.replace
    plateau = Plateau(every_steps=2, measurements=2, fall=0.01, presentations=20)
    return replace(
        tiny_recipe,
        fit=replace(tiny_recipe.fit, ema_decay=0.9, plateau=plateau),
        preprocessing=replace(tiny_recipe.preprocessing, train_on=("whole_run",)),
        diffusion=replace(tiny_recipe.diffusion, inference_steps=2),
    )


def test_an_experiment_ends_with_a_page_and_is_not_made_twice(
    tiny_nsd_with_betas: Path, tiny_base: Path, recipe: Recipe, tmp_path: Path
) -> None:
    work, out = tmp_path / "work", tmp_path / "out"
    run_experiments(["betas"], tiny_nsd_with_betas, tiny_base, work, out, recipe)
    text = (out / "betas.html").read_text()
    assert "<div class='finding" in text
    assert text.count("<svg") == 2, "results, and how the models learned"
    assert "That a loss still fell" not in text
    assert "data:image/webp" in text
    assert "until the loss of the averaged weights on 20 held-out presentations" in text
    assert "Found on disk: 1 of the 40 sessions of subject 1" in text
    assert "in which a runtime is warming" in text
    assert "base model: has seen no picture of subject 1, but some of other subjects" in text
    assert "by picture: each picture against all decodes" in text
    assert "<th>Pixels by decode ↑</th><th>Pixels by picture ↑</th>" in text
    result = json.loads((out / "betas.json").read_text())
    bench = bench_of(work, recipe, tiny_base, tiny_nsd_with_betas)
    planned = {m.folder(n) for m in models_of("betas", bench) for n in m.repetitions}
    assert {path.name for path in (work / "models").iterdir()} == planned, "as announced, and no others"
    assert set(result["curves"]) == {name for name in planned if "baseline" not in name}
    for curve in result["curves"].values():
        assert [step for step, _ in curve["losses"]] == [0, 2, 4]
        assert curve["reached"] is not None
    assert [entry["series"] for entry in result["entries"]] == [
        "Dynadiff, windows of 6 volumes",
        "Dynadiff, betas",
        "Brain-Diffuser, windows of 6 volumes",
        "Brain-Diffuser, betas",
    ]
    for entry in result["entries"]:
        assert 0 <= entry["scores"]["Pixels"]["low"] <= entry["scores"]["Pixels"]["high"] <= 1
        assert "CLIP" not in entry["scores"], "its network is not there"
    for finding in result["findings"]:
        assert finding["verdict"] in {"appears", "does not appear", "cannot be said"}
        for each in finding["differences"]:
            assert each["n_seeds"] == (1 if "Brain-Diffuser, windows" in each["one"] else 3)
            assert each["low"] <= each["value"] <= each["high"]
            interval = f"{100 * each['value']:+.1f} [{100 * each['low']:+.1f}, {100 * each['high']:+.1f}]"
            assert f"<td>{each['metric']}</td><td>{interval}</td>" in text
    lost = work / "decodes" / "betas--sub-01_betas_+0_1.npz"
    lost.unlink()  # as if interrupted while it decoded
    made = {path: path.stat().st_mtime_ns for path in work.rglob("*") if path.is_file()}
    run_experiments(["betas"], tiny_nsd_with_betas, tiny_base, work, out, recipe)
    again = {path: path.stat().st_mtime_ns for path in work.rglob("*") if path.is_file()}
    assert again.pop(lost)
    assert again == made
    assert json.loads((out / "betas.json").read_text())["entries"] == result["entries"]

    with pytest.raises(TrainError, match="not everything could be made.* holds a model with other fit than"):
        run_experiments(["betas"], tiny_nsd_with_betas, tiny_base, work, out, with_steps(recipe, 3))


def with_steps(recipe: Recipe, steps: int) -> Recipe:
    return msgspec.structs.replace(recipe, fit=msgspec.structs.replace(recipe.fit, steps=steps))


def test_with_more_steps_only_models_that_still_learned_go_on(
    tiny_nsd: Path, tiny_base: Path, recipe: Recipe, tmp_path: Path
) -> None:
    never = Plateau(every_steps=2, measurements=50, fall=0.01, presentations=20)
    recipe = msgspec.structs.replace(recipe, fit=msgspec.structs.replace(recipe.fit, plateau=never))
    short = bench_of(tmp_path / "work", recipe, tiny_base, tiny_nsd)
    long = replace(short, recipe=with_steps(recipe, 6))
    folder, reference = short.model(general(short)), short.model(baseline(short))
    assert is_made(folder, 4)
    assert not is_made(folder, 6)
    assert is_made(reference, 6), "it takes no steps"
    with pytest.raises(TrainError, match="holds a model with other brain, fit than"):
        long.model(long.variant("general", brain={"dropout": 0.3}, fit={"warmup_steps": 2}))
    info = read_info(folder)

    reached = msgspec.structs.replace(info, reached_plateau=True)
    (folder / "checkpoint.json").write_bytes(msgspec.json.encode(reached))
    long.model(general(long))
    assert read_info(folder) == reached, "more steps would have changed nothing"
    assert is_made(folder, 6)

    (folder / "checkpoint.json").write_bytes(msgspec.json.encode(info))
    progress = Progress(folders=[folder], most_steps=6, begun_s=0)
    assert progress.n_made == 0
    long.model(general(long))
    at_once = replace(long, work=tmp_path / "at once")
    other = at_once.model(general(at_once))
    assert msgspec.structs.replace(read_info(folder), base="") == msgspec.structs.replace(
        read_info(other), base=""
    )
    assert (folder / "brain.safetensors").read_bytes() == (other / "brain.safetensors").read_bytes()
    assert progress.n_made == 1
    made = (reference / "checkpoint.json").stat().st_mtime_ns
    assert long.model(baseline(long)) == reference
    assert (reference / "checkpoint.json").stat().st_mtime_ns == made
    with pytest.raises(TrainError, match="holds a model with other fit than"):
        short.model(general(short))


def test_what_was_not_measured_is_not_said_to_have_learned(
    tiny_nsd: Path, tiny_base: Path, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workbench, "N_SEEDS", 1)
    fixed = msgspec.structs.replace(recipe, fit=msgspec.structs.replace(recipe.fit, plateau=None))
    bench = bench_of(tmp_path, fixed, tiny_base, tiny_nsd)
    assert bench.unfinished(general(bench)) is None
    assert bench.unfinished(baseline(bench)) == "", "it is computed"
    path = bench.folder(general(bench)) / "checkpoint.json"
    info = read_info(path.parent)
    for is_reached, words in ((True, ""), (False, "still fell when training ended, after 4 steps")):
        path.write_bytes(msgspec.json.encode(msgspec.structs.replace(info, reached_plateau=is_reached)))
        said = bench.unfinished(general(bench))
        assert said is not None
        assert words in said
        assert bool(said) == bool(words)
    longer = replace(bench, recipe=with_steps(fixed, 6))
    with pytest.raises(TrainError, match="holds a model with other fit than"):
        longer.model(general(longer))  # because the rate had fallen


def test_what_needs_a_model_that_failed_is_dropped_once(tmp_path: Path) -> None:
    parent, child, page, other = (
        Job(name="others"),
        Job(name="tuned", after=frozenset({"others"})),
        Job(name="page new-subject", after=frozenset({"others", "tuned"})),
        Job(name="page betas"),
    )
    state = _State(left=[child, page, other], progress=Progress(folders=[], most_steps=1, begun_s=0))
    failed: Future[list[str]] = Future()
    failed.set_exception(TrainError("subject 2 is missing"))
    state.running[failed] = parent
    state.end(failed)
    assert state.failed == {"others": "others: subject 2 is missing"}
    assert state.left == [other]
    assert state.next_ready() == other


def bench_of(work: Path, recipe: Recipe, base: Path, root: Path) -> Workbench:
    windows = every_window(recipe.window)
    return Workbench(root=root, base=base, work=work, recipe=recipe, windows=windows)


def test_what_completes_soonest_comes_first_and_parents_before_children(
    tiny_base: Path, tmp_path: Path
) -> None:
    assert soonest_first({"many": "abcd", "few": "ax", "none": ""}) == ["none", "few", "many"]
    assert soonest_first({"shares": "abcd", "few": "xyz", "all": "abc"}) == ["few", "all", "shares"]
    bench = bench_of(tmp_path, read_recipe(Path("experiments")), tiny_base, tmp_path)
    jobs = jobs_of({name: models_of(name, bench) for name in EXPERIMENTS})
    names = [job.name for job in jobs]
    assert len(set(names)) == len(names), "models are shared"
    assert {name for name in names if name.startswith("page")} == {f"page {name}" for name in EXPERIMENTS}
    for place, job in enumerate(jobs):
        assert job.after <= set(names[:place])
    models = [job for job in jobs if job.variant and not job.variant.is_baseline]
    assert len(models) == 3 * len({job.variant.name for job in models if job.variant})
    assert names.index("page baseline") < names.index("page time-resolved")


def test_models_and_decodes_of_another_making_are_not_taken_for_the_right_ones(
    tiny_nsd: Path, tiny_base: Path, recipe: Recipe, tmp_path: Path
) -> None:
    bench = Workbench(
        root=tiny_nsd, base=tiny_base, work=tmp_path / "work", recipe=recipe, windows=(recipe.window,)
    )
    model, probe = bench.variant("general"), Probe(window=recipe.window)
    pictures = bench.pictures(model, probe)
    (path,) = (tmp_path / "work" / "decodes").iterdir()
    before = path.stat().st_mtime_ns
    assert np.array_equal(bench.pictures(model, probe), pictures)
    assert path.stat().st_mtime_ns == before
    fewer = replace(bench, windows=(recipe.window, Window(offset_volumes=40, length_volumes=6)))
    assert len(fewer.pictures(model, probe)) < len(pictures), "the same file, of other trials"
    assert np.array_equal(bench.pictures(model, probe), pictures)

    for other, changed in (
        (replace(bench, seed=2), "seed"),
        (replace(bench, base=_copy_with_another_unet(tiny_base, tmp_path / "base")), "base"),
        (replace(bench, root=_copy_with_another_run(tiny_nsd, tmp_path / "nsd")), "data"),
    ):
        with pytest.raises(TrainError, match=f"holds a model with other {changed} than"):
            other.model(model)
    with pytest.raises(TrainError, match="holds a model with other sessions than"):
        bench.model(bench.variant("general", n_sessions=1))


def _copy_with_another_unet(base: Path, out: Path) -> Path:
    shutil.copytree(base, out)
    unet = load_unet(out)
    unet.conv_in.bias.data += 1
    unet.save_pretrained(out / "image_unet")
    return out


def _copy_with_another_run(root: Path, out: Path) -> Path:
    shutil.copytree(root, out)
    layout = Layout(out)
    shutil.copy(layout.timeseries(1, 1, 3), layout.timeseries(1, 1, 2))
    return out


def test_neighbours_are_the_pictures_before_and_after(
    tiny_nsd: Path, tiny_base: Path, recipe: Recipe, tmp_path: Path
) -> None:
    bench = Workbench(
        root=tiny_nsd, base=tiny_base, work=tmp_path, recipe=recipe, windows=every_window(recipe.window)
    )
    cache, groups = bench.cache(1, recipe), bench.groups(1, recipe)
    has_next, _, after = bench.neighbours(1)
    has_previous, _, before = bench.neighbours(-1)
    assert len(after) == has_next.sum() < len(groups)
    trials = [group[0] for group in groups]
    for place, trial in enumerate(trials[:-1]):
        follows = cache.trials[trial + 1].trial.onset_volume - cache.trials[trial].trial.onset_volume == 3
        if follows and trials[place + 1] == trial + 1:
            _, shown = bench.shown()
            assert np.array_equal(after[has_next[:place].sum()], shown[place + 1])
            assert np.array_equal(before[has_previous[: place + 1].sum()], shown[place])
            return
    pytest.fail("no two neighbours are decoded")


def test_variants_differ_in_what_they_are_for(tiny_base: Path, tmp_path: Path) -> None:
    recipe = read_recipe(Path("experiments"))
    windows = every_window(recipe.window)
    bench = Workbench(root=tmp_path, base=tiny_base, work=tmp_path, recipe=recipe, windows=windows)
    own = specialised(bench)
    assert all(model.recipe.window.offset_volumes == offset for offset, model in own.items())
    assert set(own) <= set(OFFSETS)
    assert sorted(by_length(bench)) == [1, 2, 3, 4, 5, 6]
    rows = [*brain_modules(bench).values(), *finetunings(bench).values()]
    assert len({(row.recipe.brain, row.recipe.finetune) for row in rows}) == len(rows) - 1
    assert {row.recipe.fit for row in rows} == {recipe.fit}, "the brain module learns alike in all"
    rates = {row.name: row.recipe.finetune.peak_learning_rate for row in rows}  # the general model is in both
    assert rates["tune-cross-low"] == rates["tune-linear-low"] == rates["tune-all-low"]
    assert rates["tune-all-low"] == 0.5 * recipe.fit.peak_learning_rate
    assert rates["general"] is rates["tune-none"] is None
    control = with_the_papers_loss_and_dropout(bench)
    assert control.name == "papers-loss-and-dropout"
    assert recipe_differences(control.recipe, recipe) == ["brain", "diffusion"]
    fresh, tuned = new_subject(bench)
    for n_sessions, model in tuned.items():
        assert model.n_sessions == fresh[n_sessions].n_sessions == n_sessions
        assert model.pretrained is not None
        assert 1 not in model.pretrained.subjects
        assert model.recipe == model.pretrained.recipe


def test_a_linear_reference_is_of_what_its_model_learns_from(tiny_base: Path, tmp_path: Path) -> None:
    recipe = read_recipe(Path("experiments"))
    windows = every_window(recipe.window)
    bench = Workbench(root=tmp_path, base=tiny_base, work=tmp_path, recipe=recipe, windows=windows)
    together, alone = several_subjects(bench)
    fresh, tuned = new_subject(bench)
    models = [
        *specialised(bench).values(),
        *by_length(bench).values(),
        *by_preprocessing(bench).values(),
        of_betas(bench),
        *fresh.values(),
        *tuned.values(),
        *alone.values(),
    ]
    pairs = [(model, model.subjects[0]) for model in models] + [(together, subject) for subject in SUBJECTS]
    references = [(model, subject, linear(bench, model, subject)) for model, subject in pairs]
    for model, subject, reference in references:
        assert reference.is_baseline
        assert reference.subjects == (subject,)
        assert reference.n_sessions == model.n_sessions
        assert reference.recipe.window == model.recipe.window
        assert reference.recipe.preprocessing == model.recipe.preprocessing
    names = {reference.name: reference for _, _, reference in references}
    assert all(names[reference.name] == reference for _, _, reference in references), "a name is of one model"
    assert len(names) == 9 + 1 + 5 + 2 + 1 + 3 + 3, (
        "starts, general, lengths, causal, betas, sessions, others"
    )
    rows = [*brain_modules(bench).values(), *finetunings(bench).values()]
    assert {linear(bench, row).name for row in rows} == {baseline(bench).name} == {"baseline"}
    assert not general(bench).is_baseline


def entry(series: str, value: float, x: float | None = None) -> Entry:
    values = {metric.name: NotComputed(needs="a network") for metric in METRICS}
    noise = np.random.default_rng(3).normal(0, 0.1, 50)
    return entry_of(series, values | dict.fromkeys(HEADLINES, value + noise), np.arange(50), x)


def test_a_page_tells_three_verdicts_apart_without_colour(tmp_path: Path) -> None:
    findings = [
        Finding(claim="the sky is <blue>", verdict="does not appear", here="it was grey."),
        Finding(claim="grass is green", verdict="appears", here="it was."),
        Finding(claim="it will rain", verdict="cannot be said", here="we saw no cloud."),
    ]
    curves = {
        "fallen": Learned(losses=[(0, 2.0), (5, 1.0), (10, 1.0)], reached=True),
        "falling": Learned(losses=[(0, 2.0), (5, 1.5)], reached=False),
    }
    lines = [entry("one", 0.6 + 0.1 * x, x) for x in range(3)]
    report = Report(
        name="weather", title="Weather", question="How is it?", entries=lines, findings=findings, axis="days"
    )
    text = write_page(report, curves, {"command": "look out"}, tmp_path).read_text()
    assert "the sky is &lt;blue&gt;" in text
    for words in (
        "<b>✗ It does not appear in the synthetic data.</b> it was grey.",
        "<b>✓ It appears in the synthetic data.</b> it was.",
        "<b>? It cannot be said from what was made here.</b> we saw no cloud.",
    ):
        assert text.count(words) == 1
    borders = [
        re.search(r"border-left(?:-style)?: [^;]*(solid|double|dashed)", rule) for rule in _rules(text)
    ]
    assert sorted(border[1] for border in borders if border) == ["dashed", "double", "solid"]
    assert "A cross marks a loss that still fell when the training ended: falling." in text
    assert "Not computed, for want of their networks" in text
    result = json.loads((tmp_path / "weather.json").read_text())
    assert [finding["verdict"] for finding in result["findings"]] == [each.verdict for each in findings]
    again = write_page(report, curves, {"command": "look out"}, tmp_path / "again").read_text()
    assert text == again
    assert (tmp_path / "weather.svg").read_text() in text


def _rules(page: str) -> list[str]:
    """Of findings, in the style sheet."""
    return re.findall(r"^\.finding(?:\.\w+)? {[^}]*}", page, re.MULTILINE)


def test_an_unknown_experiment_is_named(tiny_nsd: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["experiment", "astrology", "--nsd", str(tiny_nsd), "--base", "x", "--work", "y"]
    assert main(command) == 2
    message = capsys.readouterr().err
    assert all(name in message for name in EXPERIMENTS)
