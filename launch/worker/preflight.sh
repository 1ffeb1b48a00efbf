#!/usr/bin/env bash
# preflight.sh BASE PORTS: report what must be equal or free before a run starts. PORTS is "8476 8482", or empty if
# no TPU is expected: then devices and lock file are not checked.
# shellcheck source=common.sh
. ./common.sh

ports=$1
# Replaced by the tests.
devices=${ECHOTTS_DEVICES:-/dev}
network=${ECHOTTS_NETWORK:-/proc/net}
lock=${ECHOTTS_TPU_LOCK:-/tmp/libtpu_lockfile} # the name is libtpu's

versions() {
    "$1" - <<'PYTHON'
import importlib.metadata, platform
print("python", platform.python_version())
for name in ("jax", "jaxlib", "libtpu", "flax", "orbax-checkpoint"):
    try:
        print(name, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        print(name, "none")
PYTHON
}

listening() { # whether a TCP port is in use; /proc/net/tcp has it in hexadecimal, state 0A is LISTEN
    awk -v port="$(printf ':%04X' "$1")" '$2 ~ port "$" && $4 == "0A" { found = 1 } END { exit !found }' \
        "$network/tcp" "$network/tcp6" 2>/dev/null
}

as_root() { # only root sees the open files of other users' processes
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}

holders() { # ids of processes that have the lock or a TPU device open
    as_root find /proc/[0-9]*/fd -maxdepth 1 -type l \
        \( -lname "$lock" -o -lname "$devices/accel*" -o -lname "$devices/vfio/*" \) 2>/dev/null |
        cut -d/ -f3 | sort -un | tr '\n' ' ' || true
}

sees_everything() { as_root true 2>/dev/null; }

fact host "$(hostname)"
fact time "$(date +%s)"
fact free_gb "$(free_gb "$base")"
fact release "$(release_of "$base/current")"
[ -f "$base/current/.python" ] || fail "$base/current: no code yet; run sync first"
found=$(versions "$(cat "$base/current/.python")") || fail "$(cat "$base/current/.python") does not run; run sync again"
while read -r name version; do fact "version_$name" "$version"; done <<<"$found"
token=$base/job/token
fact token "$(if [ -f "$token" ]; then sha256sum "$token" | cut -c1-8; else printf none; fi)"
if alive "$base/job/pid"; then fact job "$(cut -d' ' -f3 "$base/job/pid")"; else fact job none; fi

[ -n "$ports" ] || exit 0
for port in $ports; do
    if listening "$port"; then fact "port_$port" used; else fact "port_$port" free; fi
done
fact chips "$(find "$devices" -maxdepth 2 -regex "$devices/\(accel/\)?\(accel\|vfio/\)[0-9]+" 2>/dev/null | wc -l)"
held=$(holders)
fact holders "${held:-none}"
if [ -e "$lock" ]; then
    # Stale after a SIGKILL, and makes the next start fail. Removed only if nobody can own it: all processes on the
    # machine were checked, none has it open, and its lock is free.
    if [ -z "$held" ] && sees_everything && as_root flock -n "$lock" true; then
        as_root rm -f "$lock"
        fact lock removed
    else
        fact lock kept
    fi
else
    fact lock none
fi
