"""The trials of a sweep as experiments of DVC."""

import json
from pathlib import Path

from flows.prune import _remove_experiments
from flows.sweep.experiments import Origin, save_experiments
from tasks.settings.params import parse_params
from tasks.settings.reading import parse_mapping
from tasks.sweep.space import Base, parse_keys
from tests.helpers import empty_repository
from tests.params import TEXT

OURS = "report1_bce_iou"


def test_a_trial_is_a_commit_with_its_params_and_scores_that_prune_removes(tmp_path: Path) -> None:
    repository = empty_repository(tmp_path / "repository")
    (repository.folder / "params.yaml").write_text(TEXT)
    (repository.folder / "code.py").write_text("pass\n")
    repository.commit("start")
    base = repository.run("git", "rev-parse", "HEAD").strip()
    keys = parse_keys(["alpha=0,0.5"], "grid")
    start = Base.of(parse_mapping(TEXT, "params.yaml"), keys)
    trials = {trial.name: trial for alpha in (0, 0.5) for trial in [start.trial(OURS, {"alpha": alpha}, 2)]}
    metrics = {name: json.dumps({OURS: {"val": {"score": 0.5}}}) + "\n" for name in trials}
    said: list[str] = []
    for sweep in ("one", "one-2"):
        save_experiments(Origin(repository.folder, base, TEXT, keys), sweep, trials, metrics, said.append)
    assert said == []

    found = repository.run("git", "for-each-ref", "--format=%(refname)", "refs/exps").split()
    assert [ref.rpartition("/")[2] for ref in found] == [
        "one-2.alpha-0",
        f"one-2.{OURS}",
        "one.alpha-0",
        f"one.{OURS}",
    ]
    assert repository.run("git", "rev-parse", f"{found[2]}^").strip() == base
    assert repository.run("git", "ls-tree", "--name-only", found[2]) == repository.run(
        "git", "ls-tree", "--name-only", base
    ).replace("code.py", "code.py\nmetrics.json")
    params = parse_params(repository.run("git", "show", f"{found[2]}:params.yaml"))
    assert (params.experiments[OURS].alpha, params.experiments[OURS].seeds) == (0, 2)
    changed = repository.run("git", "diff", "--numstat", base, found[2], "--", "params.yaml").split()
    assert int(changed[1]) <= 3  # the lists of stages, for two seeds
    assert repository.run("git", "show", f"{found[2]}:metrics.json") == metrics[f"{OURS}-alpha-0"]

    _remove_experiments(repository.folder, "one")
    left = repository.run("git", "for-each-ref", "--format=%(refname)", "refs/exps").split()
    assert left == found[:2]
