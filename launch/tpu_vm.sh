#!/usr/bin/env bash
# A Cloud TPU VM: bash launch/tpu_vm.sh COMMAND [--flags]
#
#   create             asks for the VM, waits until it is ACTIVE
#   run [FLAGS...]     copies the commit that is checked out here to the VM and
#                      trains there, in tmux; FLAGS are those of launch/local.sh
#   attach             shows the training; Ctrl-b d leaves it running
#   tensorboard        TensorBoard on the VM, seen here (launch/tensorboard.sh)
#   fetch [DIR]        copies the VM's runs/ to DIR; default runs/NAME
#   delete             deletes the VM with all that is on it
#
# Each setting is a flag or a variable:
#
#   --zone=ZONE        CHIMERA_TPU_ZONE     where; always needed
#   --type=TYPE        CHIMERA_TPU_TYPE     four chips: v4-8, v5litepod-4, v6e-4;
#                                           of several hosts, which train
#                                           together: v4-16 (8 chips on 2),
#                                           v5litepod-16, v6e-16 (16 on 4);
#                                           create needs it
#   --name=NAME        CHIMERA_TPU_NAME     default chimera-tpu
#   --project=PROJECT  CHIMERA_TPU_PROJECT  default: gcloud's own
#   --spot             CHIMERA_TPU_SPOT=1   create: cheaper, can be taken away
#   --disk=SOURCE      CHIMERA_TPU_DISK     create: attaches a disk that exists,
#                                           projects/P/zones/Z/disks/D; mounting
#                                           it is up to you
#   --data=PATH                             run: uploads a folder or file and
#                                           trains on it
#   --resume=DIR                            run: uploads what fetch brought to
#                                           DIR, for a new VM to go on from
#   --port=PORT                             tensorboard; default 6006
#   --dry-run                               prints the commands, runs none
#
# What follows a -- goes to Chimera as it stands. A relative path is taken from
# the root of the repository.
set -euo pipefail
unset CDPATH # or cd may go elsewhere, and says where
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# Else macOS's tar packs a ._photo.jpg beside each photo.jpg.
export COPYFILE_DISABLE=1

fail() {
  echo "Error: $*" >&2
  exit 2
}

say() {
  echo "$*" >&2
}

# Runs a command, or prints it as a line for a shell.
run() {
  if [[ $dry_run ]]; then
    local line
    printf -v line '%q ' "$@"
    echo "${line% }"
  else
    "$@"
  fi
}

name=${CHIMERA_TPU_NAME:-chimera-tpu}
zone=${CHIMERA_TPU_ZONE:-}
type=${CHIMERA_TPU_TYPE:-}
project=${CHIMERA_TPU_PROJECT:-}
spot=${CHIMERA_TPU_SPOT:-}
disk=${CHIMERA_TPU_DISK:-}
poll=${CHIMERA_TPU_POLL:-30} # Seconds between two looks at a queued resource.
data=
resume=
port=6006
dry_run=
rest=()

command=${1:-}
case $command in
  create | run | attach | tensorboard | fetch | delete) shift ;;
  '') fail 'no command: say one of create, run, attach, tensorboard, fetch, delete.' ;;
  *) fail "unknown command $command: say one of create, run, attach, tensorboard, fetch, delete." ;;
esac

while (($#)); do
  case $1 in
    --zone=*) zone=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --name=*) name=${1#*=} ;;
    --project=*) project=${1#*=} ;;
    --disk=*) disk=${1#*=} ;;
    --data=*) data=${1#*=} ;;
    --resume=*) resume=${1#*=} ;;
    --port=*) port=${1#*=} ;;
    --spot) spot=1 ;;
    --dry-run) dry_run=1 ;;
    --zone | --type | --name | --project | --disk | --data | --resume | --port)
      fail "$1 has no value: write $1=VALUE, without a space."
      ;;
    --)
      shift
      rest+=("$@")
      break
      ;;
    *) rest+=("$1") ;;
  esac
  shift
done

case $command in
  run) ;;
  fetch) ((${#rest[@]} < 2)) || fail "fetch takes one DIR, got ${rest[*]}." ;;
  *) ((${#rest[@]} == 0)) || fail "$command takes no ${rest[0]}: its flags are in the first lines of launch/tpu_vm.sh." ;;
esac
[[ $command == run || ! $data$resume ]] || fail "$command takes neither --data nor --resume, got $data$resume: give them to run."
[[ $name =~ ^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$ ]] || fail "a name is of a-z, 0-9 and -, from a letter on, 63 at most, got --name=$name."
[[ $zone ]] || fail 'no zone: give --zone=ZONE or CHIMERA_TPU_ZONE (gcloud compute tpus locations list).'
[[ $zone =~ ^[a-z0-9-]+$ ]] || fail "a zone is one such as us-central2-b, got --zone=$zone."
[[ ! $spot || $spot == 1 ]] || fail "CHIMERA_TPU_SPOT is 1 or empty, got $spot."
[[ $port =~ ^[0-9]+$ ]] || fail "a port is a number, got --port=$port."
# What Google says to use with JAX: https://cloud.google.com/tpu/docs/runtimes
case $command:$type in
  create:v4-8 | create:v4-16) version=tpu-ubuntu2204-base ;;
  create:v5litepod-4 | create:v5litepod-16) version=v2-alpha-tpuv5-lite ;;
  create:v6e-4 | create:v6e-16) version=v2-alpha-tpuv6e ;;
  create:) fail 'no type: give --type=v4-8, v5litepod-4 or v6e-4; of several hosts v4-16, v5litepod-16 or v6e-16.' ;;
  create:*) fail "unknown type $type: give --type=v4-8, v5litepod-4 or v6e-4; of several hosts v4-16, v5litepod-16 or v6e-16." ;;
esac
[[ $dry_run ]] || command -v gcloud > /dev/null || fail 'no gcloud on the PATH: install the Google Cloud CLI (https://cloud.google.com/sdk/docs/install), or see the commands by --dry-run.'

where=("--zone=$zone")
[[ ! $project ]] || where+=("--project=$project")
queued=(gcloud compute tpus queued-resources)
node=(gcloud compute tpus tpu-vm)

# Prints the state of the queued resource, or of the node; nothing, if there is
# none. gcloud's own complaint stands for whatever else went wrong.
state() {
  local complaint status=0
  complaint=$(mktemp)
  "$@" 2> "$complaint" || status=1
  if ((status)) && grep -q 'NOT_FOUND\|was not found' "$complaint"; then
    status=0
  elif ((status)); then
    cat "$complaint" >&2
  fi
  rm "$complaint"
  return "$status"
}

queued_state() {
  state "${queued[@]}" describe "$name" "${where[@]}" '--format=value(state.state)'
}

node_state() {
  state "${node[@]}" describe "$name" "${where[@]}" '--format=value(state)'
}

# A folder for what is copied, gone when the script ends.
make_stage() {
  if [[ $dry_run ]]; then
    stage=${TMPDIR:-/tmp}/$name
    run mkdir -p "$stage"
  else
    stage=$(mktemp -d)
    trap 'rm -rf "$stage"' EXIT
  fi
}

create() {
  local flags=("--node-id=$name" "--accelerator-type=$type" "--runtime-version=$version")
  [[ ! $spot ]] || flags+=(--spot)
  [[ ! $disk ]] || flags+=("--data-disk=source=$disk,mode=read-write")
  if [[ $dry_run ]]; then
    run "${queued[@]}" create "$name" "${where[@]}" "${flags[@]}"
    echo "until [ \"\$($(run "${queued[@]}" describe "$name" "${where[@]}" '--format=value(state.state)'))\" = ACTIVE ]; do sleep $poll; done"
    return
  fi
  local now
  now=$(queued_state)
  if [[ ! $now ]]; then
    "${queued[@]}" create "$name" "${where[@]}" "${flags[@]}"
    say "Asked for $name, a $type in $zone. Ctrl-C ends the waiting, not the request: create waits again, delete takes it back."
    now=$(queued_state)
  fi
  SECONDS=0
  while :; do
    say "$name: ${now:-gone} after $SECONDS s"
    case $now in
      ACTIVE) break ;;
      FAILED | SUSPEND* | DELETING | '')
        fail "$name is ${now:-gone} and will not be ACTIVE: delete it, then create it again (why: gcloud compute tpus queued-resources describe $name ${where[*]})."
        ;;
    esac
    sleep "$poll"
    now=$(queued_state)
  done
}

run_training() {
  local flags=(${rest[@]+"${rest[@]}"}) files=() flag before=
  for flag in ${flags[@]+"${flags[@]}"}; do
    flag=${flag/#-workdir/--workdir}
    [[ $before != --workdir ]] || flag=--workdir=$flag
    case $flag in
      --workdir=runs/*) ;;
      --workdir=*) fail "on the VM a workdir is in runs/, which fetch brings back, got $flag: say --workdir=runs/NAME." ;;
      --config.data.source | --config.data.source=*) [[ ! $data ]] || fail "--data=$data is the data.source, got $flag too: leave one out." ;;
    esac
    before=$flag
  done
  [[ ! $data || -e $data ]] || fail "no such folder or file: --data=$data."
  [[ ! $resume || -d $resume ]] || fail "no such folder: --resume=$resume; fetch makes it."
  git rev-parse --quiet --verify HEAD > /dev/null 2>&1 || fail "$PWD is no git checkout: run copies a commit."
  [[ ! $(git status --porcelain) ]] || say "Note: the VM gets commit $(git rev-parse --short HEAD); what is not committed stays here."

  make_stage
  run git archive --format=tar.gz "--output=$stage/chimera-code.tar.gz" HEAD
  files+=("$stage/chimera-code.tar.gz")
  if [[ $data ]]; then
    local folder
    folder=$(cd "$(dirname "$data")" && pwd)
    [[ $data != */. && $data != */.. && $data != . && $data != .. ]] || fail "--data=$data has no name of its own: write the folder's."
    run tar -chf "$stage/chimera-data.tar" -C "$folder" "./$(basename "$data")"
    files+=("$stage/chimera-data.tar")
    flags+=("--config.data.source=data/$(basename "$data")")
  fi
  if [[ $resume ]]; then
    run tar -cf "$stage/chimera-resume.tar" -C "$resume" .
    files+=("$stage/chimera-resume.tar")
  fi
  run "${node[@]}" scp "${files[@]}" "$name:" "${where[@]}" --worker=all
  # launch/on_tpu_vm.sh does the rest, there.
  local remote='rm -rf chimera-new && mkdir chimera-new && tar -xzf chimera-code.tar.gz -C chimera-new && bash chimera-new/launch/on_tpu_vm.sh'
  ((${#flags[@]} == 0)) || remote+=$(printf ' %q' "${flags[@]}")
  run "${node[@]}" ssh "$name" "${where[@]}" --worker=all "--command=$remote"
  [[ $dry_run ]] || say 'Training on the VM. Watch it: bash launch/tpu_vm.sh attach. Save it: bash launch/tpu_vm.sh fetch.'
}

# forget_steps FROM INTO: of the checkpoints in INTO those that FROM lacks, older
# than its newest.
forget_steps() {
  local there step newest
  (cd "$1" && find . -type d -name checkpoints -prune -print) | while read -r there; do
    newest=0
    for step in "$1/$there"/*; do
      step=${step##*/}
      [[ $step == *[!0-9]* ]] || ((step <= newest)) || newest=$step
    done
    for step in "$2/$there"/*; do
      step=${step##*/}
      [[ $step == *[!0-9]* ]] || ((step >= newest)) || [[ -e $1/$there/$step ]] || rm -rf "${2:?}/$there/$step"
    done
  done
}

fetch() {
  local into=${rest[0]:-runs/$name}
  make_stage
  local remote='[ -d chimera/runs ] || { echo "Error: nothing to fetch: no training has begun on this VM." >&2; exit 2; }'
  # tar's 1 says that files changed or went while it read: the training goes on.
  remote+='; tar -cf chimera-fetch.tar -C chimera/runs . || [ $? -eq 1 ]'
  run "${node[@]}" ssh "$name" "${where[@]}" "--command=$remote"
  run "${node[@]}" scp "$name:chimera-fetch.tar" "$stage/" "${where[@]}"
  # What the run on the VM has thrown away since goes here, too, once all is here.
  run mkdir -p "$stage/fetched" "$into"
  run tar -xf "$stage/chimera-fetch.tar" -C "$stage/fetched"
  run cp -R -p "$stage/fetched/." "$into"
  [[ $dry_run ]] || forget_steps "$stage/fetched" "$into"
  [[ $dry_run ]] || say "Fetched to $into. See it: bash launch/tensorboard.sh $into"
}

delete() {
  local remove_queued=("${queued[@]}" delete "$name" "${where[@]}" --force --quiet)
  local remove_node=("${node[@]}" delete "$name" "${where[@]}" --quiet)
  if [[ $dry_run ]]; then
    run "${remove_queued[@]}"
    echo '# Only where a node of that name is left:'
    run "${remove_node[@]}"
    return
  fi
  local now
  now=$(queued_state)
  [[ ! $now ]] || "${remove_queued[@]}"
  now=$(node_state)
  [[ ! $now ]] || "${remove_node[@]}"
  say "$name is gone from $zone."
}

case $command in
  create) create ;;
  run) run_training ;;
  # tmux is told that the terminal speaks UTF-8.
  attach) run "${node[@]}" ssh "$name" "${where[@]}" -- -t tmux -u attach-session -t chimera ;;
  tensorboard)
    run "${node[@]}" ssh "$name" "${where[@]}" -- -t -L "$port:localhost:$port" \
      chimera/.venv/bin/python -m tensorboard.main --logdir=chimera/runs "--port=$port"
    ;;
  fetch) fetch ;;
  delete) delete ;;
esac
