#!/usr/bin/env bash
# switch.sh BASE RELEASE KEEP: point `current` to the release atomically; keep the newest KEEP releases.
# shellcheck source=common.sh
. ./common.sh

release=$1 keep=$2
[ -e "$base/releases/$release/.complete" ] || fail "$base/releases/$release: incomplete; run sync again"
ln -sfn "releases/$release" "$base/current.new"
mv -T "$base/current.new" "$base/current"
touch "$base/releases/$release"

running=none
if alive "$base/job/pid"; then running=$(cut -d' ' -f4 "$base/job/pid"); fi
find "$base/releases" -mindepth 1 -maxdepth 1 -type d -printf '%T@ %f\n' | sort -rn | tail -n "+$((keep + 1))" |
    while read -r _ old; do
        if [ "$old" != "$release" ] && [ "$old" != "$running" ]; then rm -rf "${base:?}/releases/$old"; fi
    done
find "$base/venvs" -mindepth 1 -maxdepth 1 -type d | while read -r venv; do
    grep -qsxF "$venv/bin/python" "$base"/releases/*/.python || rm -rf "$venv"
done
fact release "$(release_of "$base/current")"
