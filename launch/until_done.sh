#!/usr/bin/env bash
# A run on a slice of TPU VMs to its end, on capacity that may be taken away.
#
#   TPU_NAME=judge ZONE=us-west4-a PROJECT=mine SPOT=1 \
#     launch/until_done.sh [--dry-run] --config=... --workdir=gs://... [...]
#
# Creates the slice, sets it up and runs. What was interrupted (exit code 75) or
# killed is run again, a lost connection (255) is made again; a slice that was
# taken away is deleted and created anew, and the same command continues on it.
# Bad config (2) ends; so does what fails otherwise, set-up or run, three times
# in a row. While a run may go on unseen, as where this machine has no network,
# nothing is given up.
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

MAX_FAILURES=3
tpu_vm() { launch/tpu_vm.sh ${dry_run:+--dry-run} "$@"; }

trap 'say "the run goes on; the same command joins it, tpu_vm.sh stop ends it"
  exit 130' INT

tpu_vm create
restarts=0
failures=0
lost=
while true; do
  code=0
  if tpu_vm setup; then
    tpu_vm run "$@" || code=$?
    case $code in 0 | 2 | 130) break ;; esac
    lost=
  else
    code=1
  fi
  known=0
  tpu_vm check || known=$?
  if [[ $known == 3 ]]; then
    tpu_vm delete
    tpu_vm create
    restarts=0
    failures=0
    lost=
    continue
  fi
  case $known,$code in
    4,*) ;; # nothing is known of the run, which may well go on
    *,255)
      say 'connection lost: joining the run'
      lost=1
      ;;
    *,75 | *,134 | *,137 | *,139 | *,143)
      # Interrupted; or killed, as hosts are when one of them dies.
      ((restarts++ < ${MAX_RESTARTS:-50})) || break
      say "exit code $code: running it again ($restarts)"
      failures=0
      ;;
    *) # of the run, of a set-up, or of gcloud itself
      [[ $lost ]] || ((++failures < MAX_FAILURES)) || break
      say "exit code $code: trying it once more"
      ;;
  esac
  pause
done
[[ ${KEEP:-} ]] || tpu_vm delete
[[ $code == 0 ]] || say "error: exit code $code"
exit "$code"
