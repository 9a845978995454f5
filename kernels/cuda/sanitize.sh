#!/usr/bin/env bash
# Runs the card's tests under each tool of compute-sanitizer: sanitize.sh BUILD_FOLDER [parts of test names]
# Exit status 77: no compute-sanitizer or no card here.
set -euo pipefail

test=$1/test/cuda_card_test
shift
sanitizer=$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)
if [ ! -x "$sanitizer" ]; then
  echo "skipped: no compute-sanitizer"
  exit 77
fi
status=0
"$test" "$@" || status=$?
[ $status -eq 0 ] || exit $status
for tool in memcheck initcheck racecheck synccheck; do
  echo "==> $tool"
  "$sanitizer" --tool $tool --error-exitcode 1 "$test" "$@"
done
