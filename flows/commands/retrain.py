"""`cxr retrain`: one run of the pipeline, on its own branch."""

from typing import Annotated, Literal

from cyclopts import Parameter


def retrain(
    *,
    preset: Annotated[str | None, Parameter(metavar="NAME")] = None,
    assignments: Annotated[tuple[str, ...], Parameter(name="--set", metavar="KEY=VALUE")] = (),
    experiments: Annotated[tuple[str, ...], Parameter(consume_multiple=True, metavar="NAME...")] = (),
    revision: Annotated[str, Parameter(metavar="REV")] = "HEAD",
    look_for_new_data: bool = False,
    publish: Literal["remotes", "here", "nowhere"] = "here",
    promotion: Literal["never", "ask", "if better"] = "never",
    pools: Annotated[tuple[str, ...], Parameter(name="--pool", metavar="PATTERN=POOL")] = (),
    name: Annotated[str | None, Parameter(metavar="NAME")] = None,
) -> None:
    """Run the pipeline at a commit, and publish the results on a branch retrain/NAME.

    The run works in its own git worktree. Your work tree is not touched, and uncommitted changes are not
    included.

    Args:
        preset: The name of a file in presets/, such as laptop, whose values override params.yaml.
        assignments: A value of params.yaml to change, such as alpha=0.3. Can be repeated.
        experiments: The experiments to train, or all. By default those of the preset, or all.
        revision: The branch, tag or commit to start from.
        look_for_new_data: List the data source first, and use new data if there is any.
        publish: here: a branch in this repository. remotes: push it, with the data. nowhere: report only.
        promotion: Whether to judge the new network against the champion. ask: a person decides on the
            verdict with `cxr models promote` or `refuse`. if better: it becomes the champion if it passes.
        pools: Run the stages that match a pattern, such as train@*, in a work pool. Can be repeated.
        name: The name of the run and its branch. By default the preset and the time.

    Examples:
        cxr retrain --preset laptop
        cxr retrain --preset laptop --experiments report1_bce combined
        cxr retrain --set alpha=0.3 --set epochs=50 --publish remotes
        cxr retrain --pool 'train@*=gpu'
    """
    from flows.repository.git import find_repository
    from flows.request import make_request, preset_of
    from flows.retrain import run
    from flows.run import as_pools

    repository = find_repository()
    request = make_request(
        preset=preset_of(preset, repository) if preset else None,
        experiments=experiments,
        changes=assignments,
        revision=revision,
        look_for_new_data=look_for_new_data,
        publish=publish,
        promotion=promotion,
    )
    run(repository, request, as_pools(pools), name)
