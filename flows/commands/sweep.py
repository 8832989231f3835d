"""`cxr sweep`: try many settings in one run, and take the best."""

from typing import Annotated, Literal

from cyclopts import Parameter

from tasks.support.cli import InputError

Trials = Annotated[int | None, Parameter(metavar="N")]


def sweep(
    settings: Annotated[tuple[str, ...], Parameter(metavar="KEY=VALUES")],
    /,
    *,
    experiments: Annotated[tuple[str, ...], Parameter(consume_multiple=True, metavar="NAME...")],
    seeds: Annotated[int | None, Parameter(metavar="N")] = None,
    random: Trials = None,
    optuna: Trials = None,
    sampler_seed: Annotated[int, Parameter(metavar="N")] = 0,
    at_once: Annotated[int | None, Parameter(name="--round", metavar="N")] = None,
    preset: Annotated[str | None, Parameter(metavar="NAME")] = None,
    assignments: Annotated[tuple[str, ...], Parameter(name="--set", metavar="KEY=VALUE")] = (),
    revision: Annotated[str, Parameter(metavar="REV")] = "HEAD",
    publish: Literal["remotes", "here", "nowhere"] = "here",
    pools: Annotated[tuple[str, ...], Parameter(name="--pool", metavar="PATTERN=POOL")] = (),
    name: Annotated[str | None, Parameter(metavar="NAME")] = None,
) -> None:
    """Try many settings of experiments in one run, and find the best on the Val split.

    Several keys give every combination of their values. A sweep that was killed continues when it is started
    again, and what was tried before is not trained again.

    Args:
        settings: A key of an experiment with the values to try, such as alpha=0,0.5,1. With --random and
            --optuna also a range, such as learning_rate=1e-4..1e-2. Can be repeated.
        experiments: The experiments in which to try them.
        seeds: Trainings of each trial. By default as many as the experiment has.
        random: Draw N trials instead of all combinations.
        optuna: Train N trials that Optuna suggests from the scores of earlier ones.
        sampler_seed: The seed of --random and --optuna.
        at_once: How many trials Optuna suggests at a time. By default as many as run side by side here.
        preset: The name of a file in presets/, such as laptop, whose values override params.yaml.
        assignments: Another value of params.yaml to change, such as training.width=32. Can be repeated.
        revision: The branch, tag or commit to start from.
        publish: here: a branch in this repository. remotes: push it, with the data. nowhere: report only.
        pools: Run the stages that match a pattern, such as train@*, in a work pool. Can be repeated.
        name: The name of the run and its branch. By default the experiments and the keys.

    Examples:
        cxr sweep alpha=0,0.25,0.5,0.75,1 --experiments report1_bce_iou --seeds 3
        cxr sweep learning_rate=1e-4..1e-2 --experiments combined --random 12
        cxr sweep width=16..64 --experiments combined --optuna 20
    """
    from flows.repository.git import find_repository
    from flows.request import preset_of
    from flows.run import as_pools
    from flows.sweep.flow import run
    from flows.sweep.request import make_request

    if random is not None and optuna is not None:
        raise InputError("--random and --optuna: choose one of them")
    repository = find_repository()
    request = make_request(
        settings=settings,
        experiments=experiments,
        seeds=seeds,
        method="random" if random is not None else "optuna" if optuna is not None else "grid",
        trials=random if random is not None else optuna,
        sampler_seed=sampler_seed,
        round=at_once,
        preset=preset_of(preset, repository) if preset else None,
        changes=assignments,
        revision=revision,
        publish=publish,
    )
    run(repository, request, as_pools(pools), name)


def best(name: str, /, *, preset: Annotated[str, Parameter(name="--as", metavar="PRESET")]) -> None:
    """Write the best settings of a sweep as a preset.

    Args:
        name: The name of the sweep, as in runs/.
        preset: The name of the file to create in presets/.

    Examples:
        cxr sweep best sweep-report1_bce_iou-alpha --as best_alpha
    """
    from flows.repository.git import find_repository
    from flows.sweep.best import read_sweep, write_best
    from tasks.sweep.page import settings_words

    repository = find_repository()
    found = read_sweep(repository, name)
    path = write_best(repository, found, preset)
    print(f"{path.relative_to(repository)}: {settings_words(found, found.best)}")
    print(f"commit it, then: cxr retrain --preset {preset}")
