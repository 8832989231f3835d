#!/usr/bin/env bash
# entrypoint.sh TARGET [VARIABLE=VALUE...]: run `make TARGET` in this container's clone of the repository.
#
#   ORIGIN          git repository that all containers share; the clone follows its default branch
#   DVC_REMOTE_URL  DVC's default remote; if unset or empty, the one that the repository configures
#   CHECKOUT        path of the clone, in a volume
#   INSTALLED       folder of the image with .venv and the requirements.lock that it was installed from
set -euo pipefail

: "${ORIGIN:?must name a git repository}"
checkout=${CHECKOUT:-/srv/retrain/checkout}
installed=${INSTALLED:-/opt/retrain}

if [[ ! -d $checkout ]]; then
  rm -rf "$checkout.part"
  git clone --quiet -- "$ORIGIN" "$checkout.part"
  mv "$checkout.part" "$checkout"
fi
cd "$checkout"
git remote set-url origin "$ORIGIN"
git fetch --quiet --update-shallow origin
if ! git merge --quiet --ff-only '@{upstream}' 2> /dev/null; then
  # The branch was rewritten, or has local commits. Keep them on another branch. Uncommitted changes are kept too.
  kept=kept-$(git rev-parse --short HEAD)
  git branch --force "$kept" HEAD
  git reset --quiet --keep '@{upstream}'
  echo "the default branch of origin was rewritten; what was checked out here is now the branch $kept"
fi

# An image that was built from a checkout on Windows may have other line ends.
if ! diff --brief --strip-trailing-cr requirements.lock "$installed/requirements.lock" > /dev/null; then
  echo "requirements.lock differs from the one in the image; run docker compose up --build" >&2
  exit 1
fi
ln --symbolic --force --no-dereference "$installed/.venv" .venv
# Files that git has just written must not be newer than the installation, or make would repeat it.
touch --no-create --reference="$installed/requirements.lock" requirements.lock flows/commands/launcher.py

if [[ -n ${DVC_REMOTE_URL:-} ]]; then
  .venv/bin/dvc remote add --quiet --local --force --default storage "$DVC_REMOTE_URL"
fi
exec make "$@"
