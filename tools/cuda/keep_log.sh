#!/bin/sh
# A compiler launcher: runs the command and keeps what it says (`ptxas -v`) beside its object.
object=
previous=
for argument in "$@"; do
  [ "$previous" != -o ] || object=$argument
  previous=$argument
done
"$@" 2>"$object.log"
status=$?
[ $status -eq 0 ] || cat "$object.log" >&2
exit $status
