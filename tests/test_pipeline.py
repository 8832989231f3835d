"""The pipeline as its users run it, with DVC commands in a real repository, on tiny phantoms."""

import csv
import io
import json
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from flows.repository.git import environment
from tests.helpers import Repository, with_cache_of
from tests.test_structure import assert_exact_code, stages


def stages_run(output: str) -> set[str]:
    return {line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")}


@pytest.fixture(scope="module")
def repository(finished_repository: Repository, tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """A repository in which `dvc repro` has run once."""
    folder = tmp_path_factory.mktemp("pipeline") / "repository"
    return Repository(Path(shutil.copytree(finished_repository.folder, folder, symlinks=True)))


class TestInOrder:
    """The tests build on each other."""

    def test_dvc_repro_leaves_results_and_a_clean_work_tree(self, repository: Repository) -> None:
        assert repository.run("git", "status", "--porcelain").split() == [
            "??",
            "dvc.lock",
            "??",
            "metrics.json",
        ]
        repository.commit("results")
        page = repository.read("reports/index.html")
        assert "report1_bce_iou" in page
        assert "scores say nothing about patients" in page
        metrics = json.loads(repository.read("metrics.json"))
        assert metrics.keys() == {"report1_bce", "report1_bce_iou", "baselines", "dataset"}
        trivial = metrics["baselines"]
        assert trivial.keys() == {"all_background", "all_foreground", "whole_lung"}
        for of_one in (metrics["report1_bce"], trivial["whole_lung"]):
            assert of_one.keys() == {"val", "test"}
            for sets in (of_one["val"]["infection"], of_one["test"]["infection"]):
                assert sets.keys() == {"covid", "non_covid", "normal", "controls", "all"}
                assert {"iou", "dice", "mae", "missed"} <= sets["covid"].keys()
                assert "balanced" in sets["all"]
        assert trivial["all_background"]["test"]["infection"]["covid"]["iou"] == 0
        assert metrics["dataset"]["images"] == 45
        assert trivial["whole_lung"]["test"]["infection"]["covid"]["iou"] > 0.2

    def test_a_second_repro_runs_nothing(self, repository: Repository) -> None:
        assert stages_run(repository.run("dvc", "repro")) == set()
        assert "up to date" in repository.run("dvc", "status")
        assert repository.run("git", "status", "--porcelain") == ""

    def test_temporary_files_of_editors_in_a_package_rerun_nothing(self, repository: Repository) -> None:
        folder = repository.folder / "tasks" / "training"
        left = (
            ".fitting.py.swp",
            "fitting.py~",
            "#fitting.py#",
            ".#fitting.py",
            "fitting.py.bak",
            ".DS_Store",
            ".fitting.py.swx",
            "4913",
            "fitting.py.orig",
            "._fitting.py",
            ".nfs000000000000a1",
            "desktop.ini",
            ".ropeproject/config.py",
            ".ipynb_checkpoints/fitting.py",
            "__pycache__/fitting.pyc",
        )
        paths = [folder / path for path in left]
        for path in paths:
            path.parent.mkdir(exist_ok=True)
            path.write_text("of an editor")
        assert "up to date" in repository.run("dvc", "status")
        for path in paths:
            path.unlink()
        (folder / "another.py").write_text("# new code")
        assert "tasks/training" in repository.run("dvc", "status", "train@report1_bce-seed0")
        (folder / "another.py").unlink()

    def test_metrics_plots_and_artifacts_can_be_listed(self, repository: Repository) -> None:
        assert "train@report1_bce-seed0" in repository.run("dvc", "dag")
        shown = repository.run("dvc", "metrics", "show")
        assert "metrics.json" in shown
        assert "report1_bce_iou.test.infection.covid.iou" in shown
        assert "dataset.exact_pairs_across_splits" in shown

    def test_plots_show_both_losses_and_the_dice_of_each_training(self, repository: Repository) -> None:
        plots = json.loads(repository.run("dvc", "plots", "show", "--json"))
        assert "errors" not in plots
        path = "artifacts/train/report1_bce_iou-seed0/history.csv"
        assert plots["data"].keys() == {path, path.replace("_iou", "")}
        (plot,) = plots["data"][path]
        drawn = plot["content"]
        assert drawn["title"]["text"] == "report1_bce_iou-seed0"
        rows = list(csv.DictReader(io.StringIO(repository.read(path))))
        assert len(rows) == 2
        assert [{name: row[name] for name in rows[0]} for row in drawn["data"]["values"]] == rows
        folds = [
            next(step["fold"] for step in view["transform"] if "fold" in step) for view in drawn["hconcat"]
        ]
        assert folds == [["train_loss", "val_loss"], ["val_dice", "val_dice_infection", "val_dice_lung"]]
        assert {"train_loss", "val_loss", "val_dice"} <= rows[0].keys()

    def test_another_display_of_plots_reruns_nothing(self, repository: Repository) -> None:
        for name, old, new in (
            ("dvc.yaml", "            title: ${key}\n            x: epoch\n", "            x: epoch\n"),
            (".dvc/plots/training.json", '"height": 220', '"height": 300'),
        ):
            path = repository.folder / name
            assert old in path.read_text()
            path.write_text(path.read_text().replace(old, new))
        assert "up to date" in repository.run("dvc", "status")
        assert stages_run(repository.run("dvc", "repro")) == set()
        assert repository.run("git", "status", "--porcelain").split() == [
            "M",
            ".dvc/plots/training.json",
            "M",
            "dvc.yaml",
        ]
        repository.run("git", "checkout", "--", ".")

    def test_a_comment_in_params_reruns_nothing(self, repository: Repository) -> None:
        params = repository.folder / "params.yaml"
        params.write_text(params.read_text() + "# a remark\n")
        assert stages_run(repository.run("dvc", "repro")) == {"plan"}
        repository.commit("remark")

    def test_alpha_reruns_only_what_uses_alpha(self, repository: Repository) -> None:
        repository.set("alpha=0.1")
        assert "alpha" in repository.run("dvc", "params", "diff")
        assert "plan" in repository.run("dvc", "status")
        ran = stages_run(repository.run("dvc", "repro"))
        of_experiment = {"train@report1_bce_iou-seed0", "evaluate@report1_bce_iou-seed0"}
        assert ran == {"plan", *of_experiment, "compare", "report"}
        repository.commit("alpha 0.1")
        difference = json.loads(repository.run("dvc", "metrics", "diff", "HEAD~1", "--json"))["metrics.json"]
        assert difference
        assert all(name.startswith("report1_bce_iou.") for name in difference)
        assert "history.csv" in repository.run("dvc", "plots", "diff", "HEAD~1", "--json")

    def test_another_figure_reruns_compare_and_report(self, repository: Repository) -> None:
        repository.set("report.figures=[2, 3]")
        assert stages_run(repository.run("dvc", "repro")) == {"plan", "compare", "report"}
        repository.commit("figures")

    def test_a_change_of_the_template_reruns_only_report(self, repository: Repository) -> None:
        template = repository.folder / "tasks" / "reporting" / "report.html.j2"
        template.write_text(template.read_text().replace("How to read the scores", "Reading the scores"))
        assert stages_run(repository.run("dvc", "repro")) == {"report"}
        repository.commit("another word")

    def test_reverting_a_change_restores_results_from_the_cache(self, repository: Repository) -> None:
        repository.set("alpha=0.5")
        assert stages_run(repository.run("dvc", "repro")) <= {"plan", "compare", "report"}
        repository.commit("alpha 0.5")

    @pytest.mark.soak
    def test_dvc_exp_run(self, repository: Repository) -> None:
        repository.run("dvc", "exp", "run", "--set-param", "alpha=0.3", "--name", "third")
        shown = json.loads(repository.run("dvc", "exp", "show", "--json"))
        assert "third" in json.dumps(shown)
        assert YAML(typ="safe").load(repository.read("params.yaml"))["alpha"] == 0.3

    @pytest.mark.soak
    def test_new_experiments_need_only_an_entry_and_image_sizes_can_be_mixed(
        self, repository: Repository
    ) -> None:
        repository.set(
            "experiments.plain={network: unet, loss: bce, targets: [lung], train_classes: [Normal]}",
            "experiments.second={network: unet, loss: focal, images: lungs/plain, targets: [infection]}",
            "experiments.larger={network: unet, loss: bce, targets: [lung], image_size: 48}",
        )
        ran = stages_run(repository.run("dvc", "repro"))
        first = {"train@plain-seed0", "evaluate@plain-seed0"}
        second = {"lungs@plain", "train@second-seed0", "evaluate@second-seed0"}
        larger = {"preprocess@48", "train@larger-seed0", "evaluate@larger-seed0"}
        assert ran == {"plan", "audit", *first, *second, *larger, "compare", "report"}
        page = repository.read("reports/index.html")
        assert "plain" in page and "larger" in page
        metrics = json.loads(repository.read("metrics.json"))
        for split in ("val", "test"):
            assert metrics["plain"][split].keys() == metrics["larger"][split].keys() == {"lung"}
            assert metrics["second"][split].keys() == {"infection"}
        assert "Other experiments" in page

    @pytest.mark.soak
    def test_another_seed_trains_one_network_and_changed_lungs_retrain_only_their_users(
        self, repository: Repository
    ) -> None:
        repository.set(
            "experiments.plain.prediction={threshold: 0.98, fill_holes: true}", "experiments.plain.seeds=2"
        )
        ran = stages_run(repository.run("dvc", "repro"))
        seed = {"train@plain-seed1", "evaluate@plain-seed1"}
        of_second = {"lungs@plain", "train@second-seed0", "evaluate@second-seed0"}
        assert ran == {"plan", "audit", *seed, "evaluate@plain-seed0", *of_second, "compare", "report"}
        assert "2 seeds" in repository.read("reports/index.html")

    @pytest.mark.soak
    def test_dropping_duplicates_retrains_nothing_if_there_are_none(self, repository: Repository) -> None:
        repository.set("audit.duplicates=drop")
        ran = stages_run(repository.run("dvc", "repro"))
        assert ran == {"plan", "audit", "compare", "report"}

    def test_an_unknown_key_fails_before_anything_runs(self, repository: Repository) -> None:
        params = repository.folder / "params.yaml"
        good = params.read_text()
        params.write_text(good.replace("alpha: ", "alhpa: ", 1))
        output = repository.run("dvc", "repro", fails=True)
        assert "error: params.yaml: alhpa: unknown key (did you mean alpha?)" in output
        params.write_text(good)


def test_an_experiment_of_dvc_in_a_copy_finds_the_data_source(
    make_repository: Callable[[Path], Repository], kaggle_folder: Path, tmp_path: Path
) -> None:
    repository = make_repository(tmp_path / "repository")
    repository.set("data.source=data/covidqu")
    repository.commit("data source")
    (repository.folder / "data").mkdir(exist_ok=True)
    kaggle_folder.rename(repository.folder / "data" / "covidqu")
    assert "data/covidqu: 9 images" in repository.run("dvc", "exp", "run", "--temp", "download")
    assert not (repository.folder / "data" / "raw").exists()


def test_branches_of_two_runs_can_be_merged(
    make_repository: Callable[[Path], Repository], finished_repository: Repository, tmp_path: Path
) -> None:
    """As docs/how-to/compare.md describes it."""
    repository = with_cache_of(finished_repository, make_repository(tmp_path / "repository"))
    for name in ("dvc.lock", "metrics.json"):
        shutil.copyfile(finished_repository.folder / name, repository.folder / name)
    repository.commit("results")
    params = repository.folder / "params.yaml"
    before = params.read_text()
    for name in ("a", "b"):
        repository.run("git", "switch", "--quiet", "--create", f"retrain/{name}", "main")
        params.write_text(f"{before}# {name}\n")
        assert stages_run(repository.run("dvc", "repro", "plan")) == {"plan"}
        metrics = json.loads(repository.read("metrics.json"))
        metrics["dataset"]["images"] = ord(name)
        (repository.folder / "metrics.json").write_text(json.dumps(metrics))
        repository.commit(name)
    lock = repository.read("dvc.lock")
    repository.run("git", "switch", "--quiet", "main")
    repository.run("git", "merge", "--quiet", "retrain/a")
    conflicts = repository.run("git", "merge", "retrain/b", fails=True)
    for name in ("params.yaml", "dvc.lock", "metrics.json"):
        assert f"Merge conflict in {name}" in conflicts
    repository.run("git", "checkout", "--theirs", "params.yaml")
    assert stages_run(repository.run("dvc", "repro")) <= {"report"}
    assert repository.read("dvc.lock") == lock
    assert repository.read("metrics.json") == finished_repository.read("metrics.json")
    repository.run("git", "add", "params.yaml", "dvc.lock", "metrics.json")
    repository.run("git", "commit", "--no-edit", "--quiet")
    assert repository.run("git", "status", "--porcelain") == ""


AVERAGED = ("experiments.report1_bce.seeds=3", "experiments.report1_bce.prediction.ensemble=seeds")


def test_the_stages_of_an_ensemble_are_declared(
    make_repository: Callable[[Path], Repository], tmp_path: Path
) -> None:
    repository = make_repository(tmp_path / "repository")
    repository.set(*AVERAGED)
    found = stages(repository.folder)
    names = {"gather@report1_bce-seed1", "gather@report1_bce-seed2", "ensemble@report1_bce"}
    assert names == {name for name in found if name.startswith(("gather@", "ensemble@"))}
    assert_exact_code({name: found[name] for name in names})
    upstream = repository.run("dvc", "dag", "--dot", "ensemble@report1_bce")
    assert all(f'"train@report1_bce-seed{seed}"' in upstream for seed in (0, 1, 2))
    assert "ensemble" not in repository.run("dvc", "dag", "--dot", "evaluate@report1_bce-seed2")
    assert '"ensemble@report1_bce"' in repository.run("dvc", "dag", "--dot", "compare")


@pytest.mark.soak
def test_an_ensemble_is_scored_beside_its_networks(
    make_prepared_repository: Callable[[Path], Repository], finished_repository: Repository, tmp_path: Path
) -> None:
    repository = make_prepared_repository(tmp_path / "repository")
    repository.set(*AVERAGED)
    ran = stages_run(repository.run("dvc", "repro"))
    assert "train@report1_bce-seed0" not in ran and "evaluate@report1_bce-seed0" not in ran
    assert {"train@report1_bce-seed2", "gather@report1_bce-seed2", "ensemble@report1_bce"} <= ran
    assert "the average of the 3 networks of report1_bce" in repository.read("reports/index.html")
    before = json.loads(finished_repository.read("metrics.json"))["report1_bce_iou"]
    after = json.loads(repository.read("metrics.json"))
    assert after["report1_bce_iou"] == before
    assert after["report1_bce"]["ensemble"]["test"]["infection"].keys() == {"all", "covid"}
    repository.set("experiments.report1_bce.prediction.ensemble=none")
    assert stages_run(repository.run("dvc", "repro")) == {"plan", "compare", "report"}
    assert "ensemble" not in json.loads(repository.read("metrics.json"))["report1_bce"]


FOLDED = ("experiments.report1_bce.folds=3", "export.experiments=[report1_bce]")


def test_the_stages_of_a_cross_validation_are_declared(
    make_repository: Callable[[Path], Repository], tmp_path: Path
) -> None:
    repository = make_repository(tmp_path / "repository")
    repository.set(*FOLDED)
    found = stages(repository.folder)
    kinds = ("train@", "evaluate@", "gather@", "ensemble@", "convert@")
    of_experiment = {name for name in found if name.startswith(kinds) and "bce_iou" not in name}
    trainings = [f"report1_bce-fold{fold}" for fold in range(3)]
    assert of_experiment == {
        *(f"{kind}@{training}" for kind in ("train", "evaluate", "convert") for training in trainings),
        *(f"gather@{training}" for training in trainings[1:]),
        "ensemble@report1_bce",
    }
    assert_exact_code({name: found[name] for name in of_experiment})
    upstream = repository.run("dvc", "dag", "--dot", "ensemble@report1_bce")
    assert all(f'"train@{training}"' in upstream for training in trainings)
    assert '"audit"' in repository.run("dvc", "dag", "--dot", "train@report1_bce-fold1")


@pytest.mark.soak
def test_a_cross_validation_runs_beside_experiments_without(
    make_prepared_repository: Callable[[Path], Repository], finished_repository: Repository, tmp_path: Path
) -> None:
    repository = make_prepared_repository(tmp_path / "repository")
    repository.set(*FOLDED)
    ran = stages_run(repository.run("dvc", "repro"))
    assert {"audit", "train@report1_bce-fold2", "ensemble@report1_bce", "export@report1_bce"} <= ran
    assert not ran & {"preprocess@32", "baselines@infection", "train@report1_bce_iou-seed0"}
    before = json.loads(finished_repository.read("metrics.json"))
    after = json.loads(repository.read("metrics.json"))
    assert after["report1_bce_iou"] == before["report1_bce_iou"]
    assert after["report1_bce"]["out_of_fold"]["infection"].keys() == {"covid", "controls", "all"}
    assert after["report1_bce"]["ensemble"].keys() == {"test"}
    bundle = json.loads(repository.read("artifacts/bundles/report1_bce/bundle.json"))
    assert [network["training"] for network in bundle["main"]["networks"]] == [
        f"report1_bce-fold{fold}" for fold in range(3)
    ]
    assert stages_run(repository.run("dvc", "repro")) == set()
    # With another correlation, the folds are drawn again, and only experiments with folds are trained.
    repository.set("audit.correlation=0.99")
    assert "train@report1_bce_iou-seed0" not in stages_run(repository.run("dvc", "repro"))


def test_the_history_grows_while_dvc_trains_and_is_watched(
    make_prepared_repository: Callable[[Path], Repository], tmp_path: Path
) -> None:
    repository = make_prepared_repository(tmp_path / "repository")
    repository.set("epochs=80")
    history = repository.folder / "artifacts" / "train" / "report1_bce-seed0" / "history.csv"
    options: dict[str, Any] = {
        "cwd": repository.folder,
        "env": environment(),
        "stdout": subprocess.PIPE,
        "text": True,
    }
    seen: list[str] = []
    with (
        subprocess.Popen(["dvc", "repro", "train@report1_bce-seed0"], **options) as training,
        subprocess.Popen(["cxr", "watch"], **options) as watching,
    ):
        while training.poll() is None:
            if history.exists() and (text := history.read_text()) not in seen:
                seen.append(text)
            time.sleep(0.02)
        shown, _ = watching.communicate(timeout=60)
    assert (training.returncode, watching.returncode) == (0, 0)
    whole = history.read_text()
    assert len(whole.splitlines()) == 81
    assert len(seen) > 3  # it grew
    assert all(whole.startswith(text) and text.endswith("\n") for text in seen)
    lines = shown.splitlines()
    assert "report1_bce-seed0: finished, epoch 80 of 80" in lines
    assert lines[-1] == "no training is running"
    assert "\x1b" not in shown
