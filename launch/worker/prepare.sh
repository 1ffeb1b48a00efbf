#!/usr/bin/env bash
# prepare.sh BASE RELEASE: create the directories; report whether the release is already installed.
# shellcheck source=common.sh
. ./common.sh

release=$1
mkdir -p "$base"/{incoming,releases,venvs,logs,job}
chmod 700 "$base" "$base/incoming" "$base/job"
if [ -e "$base/releases/$release/.complete" ]; then fact complete yes; else fact complete no; fi
fact free_gb "$(free_gb "$base")"
