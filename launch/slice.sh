# The life of a slice, for tpu_vm.sh, which sources it: its queued resource is
# asked for, looked at, given back.
# shellcheck shell=bash

tpus=(gcloud ${TRACK:+"$TRACK"} compute tpus)
where=(--zone="$ZONE" --project="$PROJECT" --quiet)
read -ra create_flags <<<"${CREATE_FLAGS:-}"

look() { # look ASSUMED queued-resources|tpu-vm FIELD: sets state and trouble
  # The state is ABSENT where there is none, '' where gcloud has no answer; then
  # trouble has its words, but for addresses, which differ from call to call.
  local answer
  trouble=
  if answer=$(ask "$1" "${tpus[@]}" "$2" describe "$TPU_NAME" \
    --format="value($3)" "${where[@]}" 2>&1 | sed 's/ at 0x[0-9a-f]*//g'); then
    # Warnings may stand beside it.
    state=$(grep -xEm1 '[A-Z_]+' <<<"$answer" || true)
    return
  fi
  state=
  case $answer in
    *NOT_FOUND*) state=ABSENT ;;
    *'gcloud auth login'* | *UNAUTHENTICATED* | *eauthentication*)
      trouble='NOT LOGGED IN: run gcloud auth login, and this goes on by itself'
      ;;
    *) trouble=$answer ;;
  esac
}

refused() { # whether the trouble is an answer, to which time changes nothing
  [[ $trouble == *@(PERMISSION_DENIED|INVALID_ARGUMENT)* ]]
}

create() { # whatever it begins with: asks only where there is no request
  local assumed=ABSENT shown=
  while true; do
    look "$assumed" queued-resources state.state
    [[ "$state$trouble" == "$shown" || $dry_run ]] ||
      say "$TPU_NAME: ${state:-${trouble:-no answer}}"
    shown=$state$trouble
    case $state in
      ACTIVE) return ;;
      ABSENT)
        [[ $assumed == ABSENT ]] || fail "$TPU_NAME: somebody deleted it" 5
        call "${tpus[@]}" queued-resources create "$TPU_NAME" \
          --node-id="$TPU_NAME" \
          --accelerator-type="${ACCELERATOR_TYPE:-v5litepod-16}" \
          --runtime-version="${RUNTIME_VERSION:-v2-alpha-tpuv5-lite}" \
          ${SERVICE_ACCOUNT:+--service-account="$SERVICE_ACCOUNT"} \
          ${SPOT:+--spot} "${create_flags[@]}" "${where[@]}"
        assumed=ACTIVE
        continue
        ;;
      FAILED | SUSPEND*)
        [[ $assumed == ABSENT ]] || fail "$TPU_NAME: no slice came" 1
        delete # it is of a slice that is gone
        continue
        ;;
      DELETING) ;;
      ?*) assumed=ACTIVE ;; # from now on
    esac
    ! refused || fail "$TPU_NAME: gcloud refuses it" 1
    pause
  done
}

check() {
  local request about
  look ACTIVE queued-resources state.state
  request=$state
  about=$trouble
  look READY tpu-vm state
  case $request/$state in
    ABSENT/* | DELETING/*) fail "$TPU_NAME: somebody deleted it" 5 ;;
    FAILED/* | SUSPEND*/* | ACTIVE/ABSENT | \
      */PREEMPTED | */TERMINATED | */STOP* | */DELETING)
      fail "$TPU_NAME: was taken away" 3
      ;;
    / | /ABSENT) fail "$TPU_NAME: gcloud does not answer for it: $about" 4 ;;
  esac
}

delete() { # what is just being taken away cannot be deleted at once
  local tries=0
  until call "${tpus[@]}" queued-resources delete "$TPU_NAME" --force \
    "${where[@]}"; do
    look ACTIVE queued-resources state.state
    [[ $state != ABSENT ]] || return 0
    # Without a network it goes on: a slice that stays costs.
    if [[ $state ]] || refused; then
      ((++tries < 20)) || fail "$TPU_NAME: could not be deleted" 1
    fi
    pause
  done
}
