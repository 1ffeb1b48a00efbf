#!/usr/bin/env bash
# logs.sh BASE LINES FOLLOW: print the end of the newest log; FOLLOW is yes or no. The output is not answers.
# shellcheck source=common.sh
. ./common.sh

trap - EXIT
lines=$1 follow=$2
log=$base/job/log
if [ ! -e "$log" ]; then
    printf 'no log on worker %s yet\n' "$worker"
    exit 0
fi
if [ "$follow" = yes ]; then
    exec tail -n "$lines" --pid="$PPID" -F "$log" # ends with the connection
fi
exec tail -n "$lines" "$log"
