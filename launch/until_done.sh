#!/usr/bin/env bash
# A run on a slice of TPU VMs to its end, on capacity that may be taken away.
#
#   TPU_NAME=judge ZONE=us-west4-a PROJECT=mine SPOT=1 \
#     launch/until_done.sh [--dry-run] --config=... --workdir=gs://... [...]
#
# Creates the slice, sets it up and runs. What was interrupted (exit code 75) or
# killed is run again, a lost connection (255) is made again; a slice that was
# taken away is deleted and created anew, and the same command continues on it.
# One that somebody deletes by hand is not: this ends, too.
# Bad config (2) ends; so does what fails otherwise three times in a row: the
# slice's creation, set-up, the run. While a run may go on unseen, as where this
# machine has no network, nothing is given up.
# At the end the slice is deleted (KEEP=1: kept), whatever the exit code, which
# is the run's. Safe to repeat: it joins a run that goes on.
#
# Variables are those of tpu_vm.sh, and MAX_RESTARTS (50) on one slice. ENV_FILE
# is brought anew, and REVISION is the same commit, at every restart.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. launch/calls.sh

[[ $# -gt 0 ]] || usage
need TPU_NAME ZONE PROJECT
need_workdir "$@"
need_env_file
say_uncommitted
REVISION=$(ask "${REVISION:-HEAD}" git rev-parse --verify "${REVISION:-HEAD}")
export REVISION

MAX_FAILURES=3
tpu_vm() { launch/tpu_vm.sh ${dry_run:+--dry-run} "$@"; }

slice() { # slice COMMAND...: of tpu_vm.sh, each until it is done
  local command code
  failures=0
  for command; do
    until tpu_vm "$command"; do
      code=$?
      # Wrong flags stay wrong; and who deleted the request wants no other.
      [[ $code != [25] ]] || exit "$code"
      ((++failures < MAX_FAILURES)) || fail "$command: given up" 1
      pause
    done
    failures=0
  done
}

trap 'say "the run goes on; the same command joins it, tpu_vm.sh stop ends it"
  exit 130' INT

slice create
restarts=0
lost=
shown=
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
  told=$(tpu_vm check 2>&1 >&3) || known=$?
  [[ ! $told || $told == "$shown" ]] || printf '%s\n' "$told" >&2
  shown=$told
  case $known,$code in
    3,*)
      slice delete create
      restarts=0
      lost=
      shown=
      ;;
    4,*) ;; # nothing is known of the run, which may well go on
    5,*) fail "exit code $code: given up" "$code" ;;
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
