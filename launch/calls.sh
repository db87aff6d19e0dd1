# What the scripts beside it share: --dry-run, and errors by name. They source
# it with their own arguments, after `set -euo pipefail`.
# shellcheck shell=bash

# Where a dry run prints, also while an answer is captured.
exec 3>&1

dry_run=
if [[ ${1:-} == --dry-run ]]; then
  dry_run=1
  shift
fi

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }

fail() { # fail TEXT [EXIT_CODE]: 2, a mistake of the caller's, if none is given
  say "error: $1"
  exit "${2:-2}"
}

usage() { # the comment at the head of the script
  sed -n '2,/^[^#]/s/^# \{0,1\}//p' "launch/${0##*/}" >&2
  exit 2
}

need() { # need VARIABLE...: all that are missing are named
  local variable missing=()
  for variable; do [[ -n ${!variable:-} ]] || missing+=("$variable"); done
  [[ ${#missing[@]} == 0 ]] || fail "set ${missing[*]}"
}

need_workdir() { # need_workdir ARGUMENT...: of tract_jax.main
  local argument
  for argument; do
    case "$argument" in
      --workdir=?*://* | --workdir=/*) return 0 ;;
    esac
  done
  # A slice's own disks are gone with it.
  fail 'give --workdir=gs://BUCKET/RUN, or a folder /... that all hosts mount'
}

say_uncommitted() { # unless REVISION names the commit that hosts get
  [[ ${REVISION:-} ]] || call git diff --quiet HEAD ||
    say 'what is not committed stays here: hosts get HEAD'
}

need_env_file() { # ENV_FILE may be unset; its lines are not shown
  [[ ${ENV_FILE:-} ]] || return 0
  [[ -r $ENV_FILE ]] || fail "ENV_FILE=$ENV_FILE: cannot be read"
  [[ $(ls -lnd "$ENV_FILE") == -rw-------* ]] ||
    fail "ENV_FILE=$ENV_FILE: is not of mode 600: chmod 600"
  ! grep -Eqv '^(#.*|[A-Za-z_][A-Za-z0-9_]*=[^[:cntrl:]]*)?$' "$ENV_FILE" ||
    fail "ENV_FILE=$ENV_FILE: has a line that is not KEY=VALUE"
}

quoted() { # quoted WORD...: as a shell reads them again
  local word line=()
  for word; do
    [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]] || word=${word@Q}
    line+=("$word")
  done
  printf '%s\n' "${line[*]}"
}

call() { # call COMMAND...: runs it; a dry run prints it
  if [[ $dry_run ]]; then
    quoted "$@" >&3
  else
    "$@"
  fi
}

ask() { # ask ANSWER COMMAND...: as call, where a dry run takes ANSWER for its
  local answer=$1
  shift
  call "$@" || return
  [[ ! $dry_run ]] || printf '%s\n' "$answer"
}

pause() { # between two looks at what takes its time
  [[ $dry_run ]] || sleep "${POLL_SECS:-30}"
}
