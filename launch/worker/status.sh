#!/usr/bin/env bash
# status.sh BASE: report what is installed, what runs or how it ended, and its last log line.
# shellcheck source=common.sh
. ./common.sh

fact host "$(hostname)"
fact release "$(release_of "$base/current")"
job=$base/job
state=none
if [ -f "$job/pid" ]; then
    fact run "$(cut -d' ' -f3 "$job/pid")"
    if alive "$job/pid"; then
        state=running
    elif [ -f "$job/exit" ]; then
        state=ended
        fact code "$(cut -d' ' -f1 "$job/exit")"
    else
        state=died # killed, or the machine went down, before the exit code was written
    fi
    if [ -f "$job/stopped" ]; then fact stopped yes; fi
fi
fact state "$state"
if [ -f "$job/log" ]; then
    fact log_age_s "$(($(date +%s) - $(stat -L -c %Y "$job/log")))"
    fact last "$(tail -c 4000 "$job/log" | tr '\r' '\n' | grep -v '^[[:space:]]*$' | tail -n 1 | cut -c1-300)"
fi
for role in watchdog dashboard; do
    if alive "$job/$role.pid"; then fact "$role" running; else fact "$role" none; fi
done
if [ -d "$base" ]; then fact free_gb "$(free_gb "$base")"; fi
