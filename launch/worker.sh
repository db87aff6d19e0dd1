#!/usr/bin/env bash
# On a host of a slice, in the folder of the code: what tpu_vm.sh asks of it.
#
#   launch/worker.sh [--dry-run] COMMAND
#
#   setup [NAME...]
#                Python 3.11 and the locked packages, in .venv; and those of
#                requirements/NAME.txt, such as wandb
#   run ARGS...  starts python -m tract_jax.main ARGS..., which outlives the
#                connection, or finds it running; shows run.log, and ends with
#                its exit code. ../tract_jax.env has variables of it
#   stop         asks it to save and to end
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. launch/calls.sh

setup() {
  # The hosts' own Python is older; uv brings one.
  [[ -x .uv/bin/uv ]] || call python3 -m pip install --quiet \
    --disable-pip-version-check --target=.uv --require-hashes \
    -r requirements/uv.txt
  [[ -x .venv/bin/python ]] || call .uv/bin/uv venv --quiet --python=3.11 .venv
  local name install=(.uv/bin/uv pip install --quiet --python=.venv/bin/python)
  call "${install[@]}" --require-hashes -r requirements/lock.txt
  for name in tpu "$@"; do
    call "${install[@]}" --no-deps --require-hashes -r "requirements/$name.txt"
  done
  call "${install[@]}" --no-index --no-deps --no-build-isolation --editable .
}

is_running() { # whether run.pid is of a process of ours
  [[ -f run.pid ]] && grep -qs tract_jax.main "/proc/$(<run.pid)/cmdline"
}

variables() { # as they are written: nothing in the file is run
  local line
  while IFS= read -r line || [[ $line ]]; do
    [[ ! $line =~ ^[A-Za-z_][A-Za-z0-9_]*= ]] || export "${line?}"
  done <../tract_jax.env
}

run() {
  local program=(.venv/bin/python -m tract_jax.main "$@") size
  if [[ $dry_run ]]; then
    call "${program[@]}"
    return
  fi
  touch run.log
  size=$(stat --format=%s run.log)
  if is_running; then
    say "joins $(tr '\0' ' ' <"/proc/$(<run.pid)/cmdline" | grep -o '\.venv.*')"
  else
    rm -f run.exit
    [[ ! -f ../tract_jax.env ]] || variables
    # The shell around the program waits for it also when all are told to end.
    # shellcheck disable=SC2016
    setsid nohup bash -c 'trap : TERM; "$@"; echo $? >run.exit' run \
      "${program[@]}" >>run.log 2>&1 </dev/null 3>&- &
    echo $! >run.pid
  fi
  tail --bytes=+$((size + 1)) --follow --pid="$(<run.pid)" run.log
  # Without it, the shell itself was killed.
  [[ -f run.exit ]] || exit 137
  exit "$(<run.exit)"
}

stop() {
  is_running || fail 'nothing runs' 1
  call pkill -TERM --parent "$(<run.pid)"
}

case "${1:-}" in
  setup | run) "$@" ;;
  stop) stop ;;
  *) usage ;;
esac
