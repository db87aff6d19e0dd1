#!/usr/bin/env bash
# A run on a TPU slice in GKE, as a JobSet (launch/jobset.yaml).
#
#   NAME=judge IMAGE=REGION-docker.pkg.dev/PROJECT/REPOSITORY/tract_jax:TAG \
#     launch/jobset.sh [--dry-run] create --config=... --workdir=gs://... [...]
#   NAME=judge launch/jobset.sh [--dry-run] COMMAND
#
#   create ARGS...  all pods run python -m tract_jax.main ARGS...
#   logs [HOST]     follows the log of a host (0)
#   state           says how often it was restarted, and how it ended
#   delete          ends it; the pods save first. create continues the run
#
# SERVICE_ACCOUNT (default) is the Kubernetes account that may use the bucket.
# Where there is a secret tract-jax-env, the run has its keys as variables.
# kubectl's current context is the cluster, which needs JobSet 0.8 or newer.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. launch/calls.sh

json() { # json WORD...: as the inside of a JSON list
  local word list=
  for word; do
    [[ $word != *[[:cntrl:]]* ]] || fail "${word@Q}: is not of one line"
    word=${word//\\/\\\\}
    # Kubernetes reads "$(NAME)" as a variable, and "$$" as "$".
    word=${word//'$'/'$$'}
    list+=", \"${word//\"/\\\"}\""
  done
  printf '%s' "${list#, }"
}

manifest() { # manifest ARGS...
  local text
  text=$(<launch/jobset.yaml)
  # The comment at its head speaks of what is filled in.
  text=${text#*$'\napiVersion'}
  text=apiVersion$text
  text=${text//'"@NAME@"'/"$(json "$NAME")"}
  text=${text//'"@IMAGE@"'/"$(json "$IMAGE")"}
  text=${text//'"@SERVICE_ACCOUNT@"'/"$(json "${SERVICE_ACCOUNT:-default}")"}
  printf '%s\n' "${text//'"@ARGS@"'/"$(json "$@")"}"
}

create() {
  need IMAGE
  need_workdir "$@"
  # Checked here: a failure inside $(...) would end that alone.
  json "$NAME" "$IMAGE" "${SERVICE_ACCOUNT:-default}" "$@" >/dev/null
  local text
  text=$(manifest "$@")
  if [[ $dry_run ]]; then
    printf "kubectl create --filename=- <<'END'\n%s\nEND\n" "$text"
  else
    kubectl create --filename=- <<<"$text"
  fi
}

[[ $# -gt 0 ]] || usage
need NAME
label=jobset.sigs.k8s.io/jobset-name=$NAME
case "${1:-}" in
  create) create "${@:2}" ;;
  logs)
    call kubectl logs --follow --tail=100 \
      --selector="$label,batch.kubernetes.io/job-completion-index=${2:-0}"
    ;;
  state) call kubectl get jobset "$NAME" ;;
  delete) call kubectl delete jobset "$NAME" --cascade=foreground ;;
  *) usage ;;
esac
