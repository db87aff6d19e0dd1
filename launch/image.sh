#!/usr/bin/env bash
# Builds the image of launch/Dockerfile from the working tree, and pushes it.
#
#   IMAGE=REGION-docker.pkg.dev/PROJECT/REPOSITORY/tract_jax:TAG \
#     launch/image.sh [--dry-run]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. launch/calls.sh

[[ $# == 0 ]] || usage
need IMAGE
call docker build --platform=linux/amd64 --file=launch/Dockerfile \
  --tag="$IMAGE" .
call docker push "$IMAGE"
