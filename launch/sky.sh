#!/usr/bin/env bash
# A run on a slice of TPU VMs, as a managed job of SkyPilot (launch/sky.yaml).
#
#   NAME=judge INFRA=gcp/us-west4 \
#     launch/sky.sh [--dry-run] create --config=... --workdir=gs://... [...]
#   NAME=judge launch/sky.sh [--dry-run] logs|delete
#
# SkyPilot brings the working tree to each host, and gets a new slice for one
# that is taken away. ON_DEMAND=1 asks for capacity that is not;
# EXTRAS=wandb brings the packages of requirements/wandb.txt; ENV_FILE names a
# file of lines KEY=VALUE that the run has as secrets, such as HF_TOKEN.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. launch/calls.sh

create() {
  need INFRA
  need_workdir "$@"
  need_env_file
  call sky jobs launch --yes --detach-run --name="$NAME" --infra="$INFRA" \
    ${ON_DEMAND:+--no-use-spot} ${EXTRAS:+--env="EXTRAS=$EXTRAS"} \
    ${ENV_FILE:+--secret-file="$ENV_FILE"} \
    --env="ARGS=$(quoted "$@")" launch/sky.yaml
}

[[ $# -gt 0 ]] || usage
need NAME
case "${1:-}" in
  create) create "${@:2}" ;;
  logs) call sky jobs logs --name="$NAME" --follow ;;
  delete) call sky jobs cancel --yes --name="$NAME" ;;
  *) usage ;;
esac
