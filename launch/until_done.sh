#!/usr/bin/env bash
# A run on a slice of TPU VMs to its end, on capacity that may be taken away.
#
#   TPU_NAME=judge ZONE=us-west4-a PROJECT=mine SPOT=1 \
#     launch/until_done.sh [--dry-run] --config=... --workdir=gs://... [...]
#
# Creates the slice, sets it up and runs. What was interrupted (exit code 75) or
# killed is run again; a slice that was taken away is deleted and created anew,
# and the same command continues on it. Bad config (2) and other failures end.
# At the end the slice is deleted (KEEP=1: kept), whatever the exit code, which
# is the run's. Safe to repeat: it joins a run that goes on.
#
# Variables are those of tpu_vm.sh, and MAX_RESTARTS (50) on one slice.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. launch/calls.sh

[[ $# -gt 0 ]] || usage
need TPU_NAME ZONE PROJECT
need_workdir "$@"

tpu_vm() { launch/tpu_vm.sh ${dry_run:+--dry-run} "$@"; }

trap 'say "the run goes on; the same command joins it, tpu_vm.sh stop ends it"
  exit 130' INT

tpu_vm create
restarts=0
while true; do
  code=0
  { tpu_vm setup && tpu_vm run "$@"; } || code=$?
  case $code in 0 | 2 | 130) break ;; esac
  if ! tpu_vm check; then
    tpu_vm delete
    tpu_vm create
    restarts=0
    continue
  fi
  # Interrupted; killed, as hosts are when one of them dies; connection lost.
  [[ $code == @(75|134|137|139|143|255) ]] || break
  ((restarts++ < ${MAX_RESTARTS:-50})) || break
  say "exit code $code: running it again ($restarts)"
  pause
done
[[ ${KEEP:-} ]] || tpu_vm delete
[[ $code == 0 ]] || say "error: exit code $code"
exit "$code"
