# shellcheck shell=bash
# Common part of every worker script: the worker's number, its folders, and the format of answers.
#
# The whole script is sent with each call (bash -c TEXT NAME BASE ARGUMENTS), so a worker never runs an older one. Its
# answers are lines that start with the worker's number, since gcloud mixes the output of all workers:
#   @w3 fact KEY VALUE     @w3 error TEXT     @w3 exit CODE
#
#   BASE/incoming   copied files that were not used yet         BASE/releases/ID   unpacked code, .complete when complete
#   BASE/venvs/KEY  one environment per list of requirements    BASE/current       link to the release to start next
#   BASE/job        the running job: job.sh, pid, exit, token         BASE/logs          one log per run and worker
set -euo pipefail

base=$1
shift
case $base in /*) ;; *) base=$HOME/$base ;; esac

# gcloud's number of this machine, not the process index: set by local.py, else from a TPU VM's metadata, else the
# end of its host name.
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

release_of() { # the release a link points to
    basename "$(readlink "$1" 2>/dev/null || printf none)"
}

started_at() { # start time of a process in clock ticks since boot: its id alone may have been reused
    sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -d' ' -f20
}

alive() { # whether the process in this file (PID STARTED) is still running
    local pid started
    [ -f "$1" ] && read -r pid started _ <"$1" && [ "$(started_at "$pid")" = "$started" ] &&
        grep -q '^State:[[:space:]]*[^Z[:space:]]' "/proc/$pid/status" 2>/dev/null # missing: it just ended
}

group_runs() { # whether any process of this group is still running
    ps -e -o pgid=,stat= | awk -v group="$1" '$1 == group && $2 !~ /^Z/ { found = 1 } END { exit !found }'
}

free_gb() { # free space below a directory
    df -Pk "$1" | awk 'NR == 2 { printf "%d\n", $4 / 1048576 }'
}
