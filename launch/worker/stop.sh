#!/usr/bin/env bash
# stop.sh BASE GRACE_S BY_HAND: SIGTERM, which lets the run save; SIGKILL after GRACE_S seconds. BY_HAND is yes if
# requested by the user: watch then does not restart the run.
# shellcheck source=common.sh
. ./common.sh

grace_s=$1 by_hand=$2

gone_within() { # whether a group ends within this many seconds
    local group=$1 end=$((SECONDS + $2))
    while group_runs "$group"; do
        [ "$SECONDS" -lt "$end" ] || return 1
        sleep 0.2
    done
}

stop() { # stops the process group whose leader is in this file; prints the outcome
    local pid
    alive "$1" || {
        printf 'none\n'
        return
    }
    pid=$(cut -d' ' -f1 "$1")
    kill -TERM -- "-$pid" 2>/dev/null || true
    if gone_within "$pid" "$2"; then
        printf 'stopped\n'
        return
    fi
    kill -KILL -- "-$pid" 2>/dev/null || true
    gone_within "$pid" 30 || fail "process group $pid is still running 30 s after SIGKILL (stuck in the driver: reboot, or down and up)"
    printf 'killed\n'
}

[ -d "$base/job" ] || {
    fact job none
    exit 0
}
if [ "$by_hand" = yes ]; then touch "$base/job/stopped"; fi
outcome=$(stop "$base/job/pid" "$grace_s") || {
    printf '%s\n' "$outcome"
    exit 1
}
fact job "$outcome"
for role in watchdog dashboard; do
    fact "$role" "$(stop "$base/job/$role.pid" 10)"
done
