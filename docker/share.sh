#!/usr/bin/env bash
# share.sh CHECKOUT: $ORIGIN gets what is checked out in CHECKOUT as its branch main, unless ORIGIN is elsewhere.
set -euo pipefail

if [[ $ORIGIN != /* ]]; then
  echo "ORIGIN is elsewhere: nothing to do"
  exit 0
fi
[[ -e $ORIGIN/HEAD ]] || git init --quiet --bare --initial-branch=main "$ORIGIN"
git -C "$1" push --quiet "$ORIGIN" HEAD:refs/heads/main
