#!/usr/bin/env bash
# Builds the image of launch/Dockerfile from the working tree, and pushes it.
#
#   IMAGE=REGION-docker.pkg.dev/PROJECT/REPOSITORY/tract_jax:TAG \
#     launch/image.sh [--dry-run]
#
# EXTRAS=wandb puts packages of requirements/wandb.txt in, too.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. launch/calls.sh

[[ $# == 0 ]] || usage
need IMAGE
call docker build --platform=linux/amd64 --file=launch/Dockerfile \
  ${EXTRAS:+--build-arg="EXTRAS=$EXTRAS"} --tag="$IMAGE" .
call docker push "$IMAGE"
