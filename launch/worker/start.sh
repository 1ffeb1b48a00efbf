#!/usr/bin/env bash
# start.sh BASE RUN RELEASE ROLE: start incoming/ROLE.sh (environment and command) in its own session, detached
# from the ssh connection. ROLE is job (the training), watchdog or dashboard. Does nothing if it is already running.
# shellcheck source=common.sh
. ./common.sh

run=$1 release=$2 role=$3
pidfile=$base/job/pid
log=$base/logs/$run.w$worker.log
if [ "$role" != job ]; then
    pidfile=$base/job/$role.pid
    log=$base/logs/$role.w$worker.log
fi
if alive "$pidfile"; then
    fact already "$(cut -d' ' -f3 "$pidfile")"
    exit 0
fi
[ "$(release_of "$base/current")" = "$release" ] ||
    fail "$base/current is release $(release_of "$base/current"), not $release; run sync again"
[ -f "$base/incoming/$role.sh" ] || fail "$base/incoming/$role.sh: did not arrive"
install -m 600 "$base/incoming/$role.sh" "$base/job/$role.sh"
rm -f "$base/incoming/$role.sh"
if [ "$role" = job ]; then rm -f "$base/job/exit" "$base/job/stopped"; fi

# Runs for weeks in the new session. Ignores SIGTERM, which is for its child, and records the child's exit code, so
# that an ended run can be distinguished from one whose machine was preempted.
supervise() { # BASE WORKER RELEASE ROLE
    local code=0
    local command=(false)
    base=$1 worker=$2
    cd "$1/releases/$3" || exit 1
    # shellcheck source=/dev/null
    . "$1/job/$4.sh"
    export PYTHONUNBUFFERED=1 PYTHONPATH=$PWD
    [ -f "$1/job/token" ] && export HF_TOKEN_PATH=$1/job/token
    trap '' TERM HUP
    (
        trap - TERM
        exec "$(cat .python)" "${command[@]}"
    ) || code=$?
    if [ "$4" = job ]; then
        printf '%s %s\n' "$code" "$(date +%s)" >"$1/job/exit.new"
        mv "$1/job/exit.new" "$1/job/exit"
    fi
}

trap '' HUP
printf -- '--- run %s, release %s, worker %s, %s\n' "$run" "$release" "$worker" "$(date -u +%FT%TZ)" >>"$log"
setsid bash -c "$(declare -f supervise); supervise \"\$@\"" "echotts-$role" "$base" "$worker" "$release" "$role" \
    </dev/null >>"$log" 2>&1 9>&- &
pid=$!
until [ "$(ps -o sid= -p "$pid" | tr -d ' ')" = "$pid" ]; do # only then is it independent of the connection
    kill -0 "$pid" 2>/dev/null || break
    sleep 0.05
done
printf '%s %s %s %s\n' "$pid" "$(started_at "$pid")" "$run" "$release" >"$pidfile"
if [ "$role" = job ]; then ln -sfn "$log" "$base/job/log"; fi
fact pid "$pid"
