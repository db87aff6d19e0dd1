#!/usr/bin/env bash
# A run on a TPU slice in GKE, on a cluster that XPK keeps.
#
#   NAME=judge CLUSTER=mine ZONE=us-west4-a PROJECT=mine \
#     IMAGE=REGION-docker.pkg.dev/PROJECT/REPOSITORY/tract_jax:TAG \
#     launch/xpk.sh [--dry-run] create --config=... --workdir=gs://... [...]
#   NAME=judge CLUSTER=mine ZONE=us-west4-a PROJECT=mine \
#     launch/xpk.sh [--dry-run] list|delete
#
# XPK restarts what was killed by a signal; exit code 75 (interrupted) is added
# here, and 2 (bad config) ends the workload. The options are XPK 1.16's.
# Further: TPU_TYPE (v5litepod-16), NUM_SLICES (1), MAX_RESTARTS (100).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. launch/calls.sh

[[ $# -gt 0 ]] || usage
need CLUSTER NAME PROJECT ZONE
where=(--cluster="$CLUSTER" --project="$PROJECT" --zone="$ZONE")

create() {
  need IMAGE
  need_workdir "$@"
  call xpk workload create --workload="$NAME" "${where[@]}" \
    --tpu-type="${TPU_TYPE:-v5litepod-16}" --num-slices="${NUM_SLICES:-1}" \
    --docker-image="$IMAGE" \
    --command="exec python -m tract_jax.main $(quoted "$@")" \
    --max-restarts="${MAX_RESTARTS:-100}" --restart-on-exit-codes=75 \
    --termination-grace-period-seconds=300
}

case "${1:-}" in
  create) create "${@:2}" ;;
  list) call xpk workload list "${where[@]}" --filter-by-job="$NAME" ;;
  delete) call xpk workload delete --workload="$NAME" "${where[@]}" --force ;;
  *) usage ;;
esac
