#!/usr/bin/env bash
# A slice of TPU VMs: got by a queued resource, worked on all its hosts.
#
#   TPU_NAME=judge ZONE=us-west4-a PROJECT=mine \
#     launch/tpu_vm.sh [--dry-run] COMMAND
#
#   create       asks for the slice, and waits until it is there; exit code 5:
#                somebody deleted it meanwhile
#   setup        brings the committed code and the locked packages to all hosts
#   run ARGS...  starts tract_jax.main on all hosts, or joins it; its exit code
#   logs [HOST]  follows the log of a host (0)
#   stop         asks the run to save and to end (exit code 75)
#   check        exit code 3: the slice was taken away; 4: gcloud does not say;
#                5: somebody deleted it
#   delete       gives the slice back
#
# SPOT=1 asks for spot capacity. Further variables: ACCELERATOR_TYPE
# (v5litepod-16), RUNTIME_VERSION (v2-alpha-tpuv5-lite), SERVICE_ACCOUNT of the
# hosts, REVISION of the code (HEAD), EXTRAS (none; or wandb), POLL_SECS (30).
# ENV_FILE names a file of lines KEY=VALUE that the run has as variables, such
# as HF_TOKEN; a relative path begins at the project's folder.
# CREATE_FLAGS are further words for gcloud's create, SSH_FLAGS for its ssh and
# scp; TRACK=alpha is for flags that only gcloud alpha has.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. launch/calls.sh

[[ $# -gt 0 ]] || usage
need TPU_NAME ZONE PROJECT
. launch/slice.sh
archive=build/tract_jax.tar.gz
worker='bash tract_jax/launch/worker.sh'
read -ra ssh_flags <<<"${SSH_FLAGS:-}"
# So that a connection that is gone without a word is noticed.
alive=(ServerAliveInterval=30 ServerAliveCountMax=4)

on_hosts() { # on_hosts HOST|all COMMAND
  call "${tpus[@]}" tpu-vm ssh "$TPU_NAME" --worker="$1" --command="$2" \
    "${alive[@]/#/--ssh-flag=-o}" "${ssh_flags[@]}" "${where[@]}"
}

to_hosts() { # to_hosts FILE [NAME]: into their home folders
  call "${tpus[@]}" tpu-vm scp "$1" "$TPU_NAME:${2:-}" --worker=all \
    "${alive[@]/#/--scp-flag=-o}" "${ssh_flags[@]}" "${where[@]}"
}

setup() {
  need_env_file
  say_uncommitted
  call mkdir -p "${archive%/*}"
  call git archive --format=tar.gz --prefix=tract_jax/ --output="$archive" \
    "${REVISION:-HEAD}"
  to_hosts "$archive"
  # What this commit has no more must not stay.
  local old='tract_jax/tract_jax tract_jax/configs tract_jax/launch'
  if [[ ${ENV_FILE:-} ]]; then
    to_hosts "$ENV_FILE" tract_jax.env
  else
    old+=' tract_jax.env'
  fi
  local bring="rm -rf $old && tar -xzf ${archive##*/}"
  bring+=" && $worker setup${EXTRAS:+ $EXTRAS}"
  # A run that goes on keeps the code and the packages that it has.
  on_hosts all "pgrep -f '[t]ract_jax.main' >/dev/null || { $bring; }"
}

case "${1:-}" in
  create | setup | check | delete) "$1" ;;
  run) need_workdir "${@:2}" && on_hosts all "$worker $(quoted "$@")" ;;
  logs) on_hosts "${2:-0}" 'tail -n 100 -F tract_jax/run.log' ;;
  stop) on_hosts all "$worker stop" ;;
  *) usage ;;
esac
