# shellcheck shell=bash
# The head of every worker script: the worker's number, its folders, and the form of the answers.
#
# A script is sent whole with each call (bash -c TEXT NAME BASE ARGUMENTS), so a worker never runs an older one. Its
# answers are lines that begin with the worker's number, since gcloud mixes the output of all workers:
#   @w3 fact KEY VALUE     @w3 error TEXT     @w3 exit CODE
#
#   BASE/incoming   what was copied here and not used yet       BASE/releases/ID   unpacked code, .complete when whole
#   BASE/venvs/KEY  one environment per list of requirements    BASE/current       link to the release that starts next
#   BASE/job        what runs: job.sh, pid, exit, token         BASE/logs          one log per run and worker
set -euo pipefail

base=$1
shift
case $base in /*) ;; *) base=$HOME/$base ;; esac

# gcloud's number of this machine, which is not the process index: local.py sets it, a TPU VM's metadata know it, and
# its host name ends in it.
worker=${ECHOTTS_WORKER:-}
if [ -z "$worker" ]; then
    worker=$(curl -sf -m 5 -H 'Metadata-Flavor: Google' \
        http://metadata.google.internal/computeMetadata/v1/instance/attributes/agent-worker-number 2>/dev/null) ||
        worker=$(hostname | sed -n 's/.*-w-\([0-9][0-9]*\)$/\1/p')
    worker=${worker:-0}
fi

trap 'printf "@w%s exit %s\n" "$worker" "$?"' EXIT

fact() { printf '@w%s fact %s\n' "$worker" "$*"; }

fail() {
    printf '@w%s error %s\n' "$worker" "$*"
    exit 1
}

release_of() { # the release that a link to it names
    basename "$(readlink "$1" 2>/dev/null || printf none)"
}

started_at() { # when this process began, in clock ticks since boot: a process number alone may be another's by now
    sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -d' ' -f20
}

alive() { # whether the process in this file (NUMBER STARTED) still runs
    local pid started
    [ -f "$1" ] && read -r pid started _ <"$1" && [ "$(started_at "$pid")" = "$started" ] &&
        grep -q '^State:[[:space:]]*[^Z[:space:]]' "/proc/$pid/status" 2>/dev/null # none: it went just now
}

group_runs() { # whether any process of this group still runs
    ps -e -o pgid=,stat= | awk -v group="$1" '$1 == group && $2 !~ /^Z/ { found = 1 } END { exit !found }'
}

free_gb() { # free space below a directory
    df -Pk "$1" | awk 'NR == 2 { printf "%d\n", $4 / 1048576 }'
}
