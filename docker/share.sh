#!/usr/bin/env bash
# share.sh CHECKOUT: push the commit that CHECKOUT has checked out to the branch main of $ORIGIN, if that is a path.
set -euo pipefail

if [[ $ORIGIN != /* ]]; then
  echo "ORIGIN is not a local path: nothing to do"
  exit 0
fi
if [[ -f $1/.git ]] && ! git -C "$1" rev-parse --git-dir &> /dev/null; then
  echo "this checkout is a worktree or a submodule, whose repository is not in the container; use a clone" >&2
  exit 1
fi
alternates=.git/objects/info/alternates   # of `git clone --shared` and `--reference`
if [[ -s $1/$alternates ]] && ! git -C "$1" cat-file -e 'HEAD^{tree}' &> /dev/null; then
  echo "this clone uses the commits of another repository, which is not in the container; to copy them:" \
    "git repack -ad && rm $alternates" >&2
  exit 1
fi
[[ -e $ORIGIN/HEAD ]] || git init --quiet --bare --initial-branch=main "$ORIGIN"
git -C "$ORIGIN" config receive.shallowUpdate true   # accepts pushes from a shallow clone
before=$(git -C "$ORIGIN" rev-parse --quiet --verify refs/heads/main || true)
# Without hooks, which are meant for people. With --force, because the branch may be another one, or amended.
git -C "$1" -c core.hooksPath=/dev/null push --quiet --force "$ORIGIN" HEAD:refs/heads/main
if [[ -n $before ]] && ! git -C "$ORIGIN" merge-base --is-ancestor "$before" refs/heads/main; then
  git -C "$ORIGIN" update-ref "refs/replaced/$before" "$before"
  echo "main no longer contains $before, which is kept as refs/replaced/$before"
fi
