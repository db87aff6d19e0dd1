#!/usr/bin/env bash
# A slice of TPU VMs: got by a queued resource, worked on all its hosts.
#
#   TPU_NAME=judge ZONE=us-west4-a PROJECT=mine \
#     launch/tpu_vm.sh [--dry-run] COMMAND
#
#   create       asks for the slice, and waits until it is there
#   setup        brings the committed code and the locked packages to all hosts
#   run ARGS...  starts tract_jax.main on all hosts, or joins it; its exit code
#   logs [HOST]  follows the log of a host (0)
#   stop         asks the run to save and to end (exit code 75)
#   check        exit code 3: the slice was taken away; 4: gcloud does not say
#   delete       gives the slice back
#
# SPOT=1 asks for spot capacity. Further variables: ACCELERATOR_TYPE
# (v5litepod-16), RUNTIME_VERSION (v2-alpha-tpuv5-lite), SERVICE_ACCOUNT of the
# hosts, REVISION of the code (HEAD), EXTRAS (none; or wandb), POLL_SECS (30).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. launch/calls.sh

need TPU_NAME ZONE PROJECT
archive=build/tract_jax.tar.gz
worker='bash tract_jax/launch/worker.sh'
tpus=(gcloud compute tpus)
where=(--zone="$ZONE" --project="$PROJECT" --quiet)

on_hosts() { # on_hosts HOST|all COMMAND
  call "${tpus[@]}" tpu-vm ssh "$TPU_NAME" --worker="$1" --command="$2" \
    "${where[@]}"
}

state_of() { # state_of ASSUMED queued-resources|tpu-vm FIELD: '' if not known
  ask "$1" "${tpus[@]}" "$2" describe "$TPU_NAME" --format="value($3)" \
    "${where[@]}" 2>/dev/null || true
}

create() {
  local state shown=
  state=$(state_of '' queued-resources state.state)
  if [[ $state == @(FAILED|SUSPEND*) ]]; then # of a slice that is gone
    delete
    state=
  fi
  if [[ ! $state ]]; then
    call "${tpus[@]}" queued-resources create "$TPU_NAME" \
      --node-id="$TPU_NAME" \
      --accelerator-type="${ACCELERATOR_TYPE:-v5litepod-16}" \
      --runtime-version="${RUNTIME_VERSION:-v2-alpha-tpuv5-lite}" \
      ${SERVICE_ACCOUNT:+--service-account="$SERVICE_ACCOUNT"} \
      ${SPOT:+--spot} "${where[@]}"
  fi
  while true; do
    state=$(state_of ACTIVE queued-resources state.state)
    [[ $state == "$shown" || $dry_run ]] || say "$TPU_NAME: ${state:-no answer}"
    shown=$state
    [[ $state != ACTIVE ]] || return 0
    [[ $state != @(FAILED|SUSPEND*) ]] || fail "$TPU_NAME: no slice came" 1
    pause
  done
}

setup() {
  call mkdir -p "${archive%/*}"
  call git archive --format=tar.gz --prefix=tract_jax/ --output="$archive" \
    "${REVISION:-HEAD}"
  call "${tpus[@]}" tpu-vm scp "$archive" "$TPU_NAME:" --worker=all \
    "${where[@]}"
  local bring="tar -xzf ${archive##*/} && $worker setup${EXTRAS:+ $EXTRAS}"
  # A run that goes on keeps the code and the packages that it has.
  on_hosts all "pgrep -f '[t]ract_jax.main' >/dev/null || { $bring; }"
}

check() {
  local request slice
  request=$(state_of ACTIVE queued-resources state.state)
  slice=$(state_of READY tpu-vm state)
  [[ $request$slice ]] || fail "$TPU_NAME: gcloud does not answer for it" 4
  [[ $request != @(FAILED|SUSPEND*) &&
    $slice != @(PREEMPTED|TERMINATED|STOP*|DELETING) ]] ||
    fail "$TPU_NAME: was taken away" 3
}

delete() { # what is just being taken away cannot be deleted at once
  for _ in {1..20}; do
    ! call "${tpus[@]}" queued-resources delete "$TPU_NAME" --force \
      "${where[@]}" || return 0
    pause
  done
  fail "$TPU_NAME: could not be deleted" 1
}

case "${1:-}" in
  create | setup | check | delete) "$1" ;;
  run) need_workdir "${@:2}" && on_hosts all "$worker $(quoted "$@")" ;;
  logs) on_hosts "${2:-0}" 'tail -n 100 -F tract_jax/run.log' ;;
  stop) on_hosts all "$worker stop" ;;
  *) usage ;;
esac
