"""External datasets through their stages, in this process, with the networks of a tiny pipeline."""

from pathlib import Path

import pandas as pd
import pytest

from tasks.download import download
from tasks.evaluate_external import evaluate_external
from tasks.inference.masks import read_points
from tasks.lungs import restrict
from tasks.preprocess import preprocess
from tasks.settings.layout import ExternalLayout
from tasks.settings.training import LUNGS
from tasks.sources.open import open_source
from tasks.support.cli import InputError
from tests.bundles import Pipeline
from tests.external import documented, write_external
from tests.helpers import made


class Collected:
    """An external dataset, downloaded and packed."""

    def __init__(self, pipeline: Pipeline, folder: Path, source: str, layout: ExternalLayout | None) -> None:
        self._pipeline, self._folder = pipeline, folder
        self.raw, self.packed = folder / "raw", folder / "packed"
        opened = open_source(source, Path(), own_layout=layout is not None)
        download(opened, self.raw, "here", layout=layout, external="other")
        preprocess(self.raw, self.packed, pipeline.params.training.image_size, 0.0)

    def score(self, training: str, again: str = "") -> Path:
        """The folder with the scores of a training of the pipeline."""
        pipeline, plan = self._pipeline, self._pipeline.params.plans[training]
        images = self.packed
        if plan.images.startswith(LUNGS):
            images = self._lungs(plan.images.removeprefix(LUNGS))
        out = self._folder / f"{training}{again}"
        evaluate_external(
            plan,
            pipeline.params.experiments[plan.experiment].prediction,
            pipeline.out("train", training) / "network",
            read_points(pipeline.out("evaluation", training) / "settings.json"),
            images,
            self.raw,
            out,
        )
        return out

    def _lungs(self, experiment: str) -> Path:
        pipeline, out = self._pipeline, self._folder / "lungs"
        training = f"{experiment}-seed0"
        restrict(
            pipeline.params.plans[training],
            pipeline.params.experiments[experiment].prediction,
            pipeline.out("train", training) / "network",
            self.packed,
            self.raw,
            out,
            points=read_points(pipeline.out("evaluation", training) / "settings.json"),
        )
        return out


@pytest.fixture(scope="module")
def same(pipeline: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Collected:
    """The Test images of the pipeline itself, as if they were external."""
    return Collected(pipeline, tmp_path_factory.mktemp("same"), pipeline.params.data.source, None)


@pytest.mark.parametrize("training", ["combined-seed1", "two_step_lungs-seed0", "two_step_infection-seed0"])
def test_the_test_images_as_external_images_have_the_scores_of_evaluate(
    training: str, pipeline: Pipeline, same: Collected
) -> None:
    found = pd.read_csv(same.score(training) / "images.csv")
    evaluated = pd.read_csv(pipeline.out("evaluation", training) / "images.csv")
    test = evaluated[evaluated["split"] == "Test"].reset_index(drop=True)
    pd.testing.assert_frame_equal(found, test[found.columns], check_exact=True)


def test_equal_inputs_give_equal_bytes(same: Collected) -> None:
    training = "two_step_lungs-seed0"
    assert made(same.score(training, " first")) == made(same.score(training, " second"))


def test_only_targets_with_reference_masks_are_scored(pipeline: Pipeline, tmp_path: Path) -> None:
    """Infection within predicted lungs, on images without lung masks; lungs on images without infection."""
    for name, target in (("qata", "infection"), ("montgomery", "lung")):
        source = write_external(name, tmp_path / name / "source")
        layout = ExternalLayout.model_validate(documented()[name]["layout"])
        collected = Collected(pipeline, tmp_path / name, str(source), layout)
        rows = pd.read_csv(collected.score("combined-seed0") / "images.csv")
        assert set(rows["target"]) == {target}
        assert len(rows) == 6
        assert "true_share" not in rows
        assert rows["dice"].between(0, 1).all() and rows["dice"].mean() > 0


def test_a_dataset_without_its_masks_is_refused(pipeline: Pipeline, tmp_path: Path) -> None:
    source = write_external("qata", tmp_path / "source")
    layout = ExternalLayout.model_validate(documented()["qata"]["layout"])
    collected = Collected(pipeline, tmp_path, str(source), layout)
    with pytest.raises(InputError, match="these images have no lung masks"):
        collected.score("two_step_lungs-seed0")
