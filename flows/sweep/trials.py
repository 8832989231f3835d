"""Run the trials of a sweep in its checkout: the stages up to `evaluate`, at once or in Optuna's rounds."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

from flows.comparison import EVALUATIONS, IMAGES
from flows.engine.pipeline import sort_lock
from flows.remote.places import Ran, run_checkout
from flows.repository.git import commit
from flows.repository.publish import RESULTS
from flows.repository.revision import TRAINING_SUFFIX, Training, plan_trainings
from flows.repository.stage_environment import stage_environment
from flows.request import PROJECT
from flows.run import Run
from flows.sweep.request import Prepared, SweepRequest, as_point, space
from tasks.support.cli import InputError
from tasks.support.slots import slots_for
from tasks.sweep.document import Cost
from tasks.sweep.space import Trial
from tasks.sweep.suggest import Suggester

#: Rounds without a new trial after which Optuna is not asked again: all points are known.
IDLE_ROUNDS = 20

EVALUATE = "evaluate@"

#: The end of a training's name.
TRAINING = re.compile(f"{TRAINING_SUFFIX}$")

#: What the stage `evaluate` prints of Test scores, by which no trial should be chosen.
TEST_SCORES = " Test images of "


class Trained(NamedTuple):
    """The trials that have run, in the order in which they were chosen."""

    trials: dict[str, Trial]
    trainings: dict[str, list[str]]
    """The names of each trial's trainings, by increasing seed or fold."""
    all_trainings: dict[str, Training]
    """Also those that predict lungs for trials."""
    round: int | None
    """Number of trials that Optuna suggested at a time."""


def run_trials(request: SweepRequest, prepared: Prepared, run: Run) -> Trained:
    """Train and score all trials.

    Raises:
        InputError: a stage failed.
    """
    if request.method == "optuna":
        return _run_suggested(request, prepared, run)
    return _run(request, prepared.params, prepared.trials, run)


def _run_suggested(request: SweepRequest, prepared: Prepared, run: Run) -> Trained:
    """Train what Optuna suggests, round by round. Results of an earlier run come from DVC's run cache."""
    at_once = request.round or _slots(prepared, request, run)
    run.log(f"Optuna suggests {at_once} trials at a time")
    suggester = Suggester(space(request, prepared.keys), request.sampler_seed)
    wanted, trials, idle, scores = cast(int, request.trials), dict[str, Trial](), 0, dict[str, float]()
    trained: Trained | None = None
    while len(trials) < wanted and idle < IDLE_ROUNDS:
        found = suggester.ask(min(at_once, wanted - len(trials)))
        named = [prepared.base.trial(*as_point(request, each.settings), request.seeds) for each in found]
        new = {trial.name: trial for trial in named if trial.name not in trials}
        idle = 0 if new else idle + 1
        if new:
            trials |= new
            params = prepared.params_with(run.checkout, trials.values())
            trained = _run(request, params, trials.values(), run, at_once)
            scores |= {name: _score(prepared, trained, name, run.checkout) for name in new}
        for suggestion, trial in zip(found, named, strict=True):
            suggester.tell(suggestion, scores[trial.name])
    assert trained
    return trained


def _slots(prepared: Prepared, request: SweepRequest, run: Run) -> int:
    """How many trials run side by side on this machine."""
    (run.checkout / "params.yaml").write_text(prepared.text, encoding="utf-8")
    trainings = plan_trainings(run.checkout)
    seeds = request.seeds or max(
        sum(training.experiment == name for training in trainings.values()) for name in request.experiments
    )
    return max(1, len(slots_for(trainings)) // seeds)


def _score(prepared: Prepared, trained: Trained, name: str, checkout: Path) -> float:
    from tasks.sweep.judge import score  # pandas takes half a second to import

    return score(tables(trained, checkout)[name], *prepared.shared(trained.trials[name].experiment))


def tables(trained: Trained, checkout: Path) -> dict[str, list[Path]]:
    """Return the scores of single images of each trial's trainings."""
    return {
        name: [checkout / EVALUATIONS / training / IMAGES for training in trained.trainings[name]]
        for name in trained.trials
    }


def _run(
    request: SweepRequest, params: str, trials: Iterable[Trial], run: Run, at_once: int | None = None
) -> Trained:
    named = {trial.name: trial for trial in trials}
    checkout, name = run.checkout, run.name
    (checkout / "params.yaml").write_text(params, encoding="utf-8")
    lines = "\n".join(request.describe())
    commit(checkout, f"Params of {name}\n\n{lines}\n\n{run.trailers}", *RESULTS)
    # With these stages, which depend on the list of all trainings, all trials that the DVC cache has are
    # restored at once, and not one by one.
    _run_stages(run, {}, lambda stage: stage in ("plan", "audit"))
    ran = _run_stages(run, run.pools, lambda stage: _trial_of(stage) in named)
    sort_lock(checkout, [stage for stage in ran.pipeline.order if stage in ran.pipeline.upstream])
    trainings: dict[str, list[str]] = {name: [] for name in named}
    for training in sorted(ran.trainings, key=_number):
        experiment = ran.trainings[training].experiment
        if experiment in named:
            trainings[experiment].append(training)
    return Trained(named, trainings, ran.trainings, at_once)


def _run_stages(run: Run, pools: Mapping[str, str], wanted: Callable[[str], bool]) -> Ran:
    return run_checkout(
        run.checkout, run.repository, pools, run.id, run.log, wanted=wanted, hidden=TEST_SCORES
    )


def _trial_of(stage: str) -> str | None:
    """The name of the trial that a stage `evaluate` scores."""
    if not stage.startswith(EVALUATE):
        return None
    return TRAINING.sub("", stage.removeprefix(EVALUATE))


def _number(training: str) -> int:
    """The seed or fold of a training."""
    found = TRAINING.search(training)
    assert found
    return int(found[1])


# --- what a trial costs -------------------------------------------------------------------------------------


class Measured(NamedTuple):
    """The cost of each trial's network."""

    costs: dict[str, Cost]
    device: str
    """On which milliseconds were measured; empty if they were not."""


def measure(prepared: Prepared, trained: Trained, run: Run) -> Measured:
    """Measure the time and the size of each trial's first network."""
    folders = {
        name: run.checkout / "artifacts" / "train" / trainings[0] / "network"
        for name, trainings in trained.trainings.items()
    }
    try:
        device, times = _times(prepared, trained, folders, run)
    except (InputError, ValueError, KeyError) as error:
        run.log(f"milliseconds could not be measured: {error}")
        device, times = "", [None] * len(folders)
    costs = {
        name: Cost(
            parameters=json.loads((folder / "network.json").read_text(encoding="utf-8"))["parameters"],
            megabytes=(folder / "weights.safetensors").stat().st_size / 1e6,
            milliseconds=found,
        )
        for (name, folder), found in zip(folders.items(), times, strict=True)
    }
    return Measured(costs, device)


def _times(
    prepared: Prepared, trained: Trained, folders: Mapping[str, Path], run: Run
) -> tuple[str, list[float | None]]:
    asked = [[str(folder), _flips(prepared, trained.trials[name])] for name, folder in folders.items()]
    # In a slot, so that no training of another run takes the cores.
    with slots_for(trained.all_trainings).acquire(run.log) as slot:
        done = subprocess.run(
            [sys.executable, "-m", "tasks.sweep.speed"],
            cwd=PROJECT,
            env=stage_environment("evaluate") | slot.variables,
            input=json.dumps(asked),
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise InputError(done.stderr.strip().rpartition("\n")[2])
    found: dict[str, Any] = json.loads(done.stdout)
    return found["device"], found["milliseconds"]


def _flips(prepared: Prepared, trial: Trial) -> bool:
    """Whether a trial also predicts the mirror image."""
    own = trial.settings.get("prediction.flip_average")
    return bool(prepared.base.value(trial.experiment, "prediction.flip_average") if own is None else own)
