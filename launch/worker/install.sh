#!/usr/bin/env bash
# install.sh BASE RELEASE SHA256 PYTHON: check the archive, unpack it beside older releases, install its requirements.
# PYTHON is a version (3.11: an environment is created with uv), or the path of an interpreter with all requirements.
# shellcheck source=common.sh
. ./common.sh

release=$1 wanted=$2 python=$3
target=$base/releases/$release
archive=$base/incoming/$release.tar.gz

exec 9>"$base/lock"
flock -w 1200 9 || fail "another sync has held $base/lock for 20 minutes"

if [ -f "$base/incoming/token" ]; then
    install -m 600 "$base/incoming/token" "$base/job/token"
    rm -f "$base/incoming/token"
fi

uv_command() { # runs uv, installed with pip if missing; it provides a Python if the system's is too old
    export PATH=$HOME/.local/bin:$PATH
    command -v uv >/dev/null || python3 -m pip install --quiet --user uv >&2 || return 1
    uv "$@" >&2
}

make_environment() { # prints the interpreter of an environment with this release's requirements
    local key venv
    key=$(cat "$target/pyproject.toml" "$target"/requirements.* | sha256sum | cut -c1-16)
    venv=$base/venvs/$key
    if [ ! -e "$venv/.complete" ]; then
        rm -rf "$venv"
        uv_command venv --quiet --seed --python "$python" "$venv" || return 1
        (cd "$target" && uv_command pip install --quiet --python "$venv/bin/python" -r requirements.txt) || return 1
        touch "$venv/.complete"
    fi
    printf '%s\n' "$venv/bin/python"
}

if [ ! -e "$target/.complete" ]; then
    [ -f "$archive" ] || fail "$archive: did not arrive"
    got=$(sha256sum "$archive" | cut -d' ' -f1)
    [ "$got" = "$wanted" ] || fail "$archive: arrived with sha256 $got, expected $wanted; run sync again"
    rm -rf "$target"
    mkdir -p "$target"
    tar -xzf "$archive" -C "$target" || fail "$archive: cannot be unpacked"
    case $python in
        /*) interpreter=$python ;;
        *) interpreter=$(make_environment) || fail "requirements of $release could not be installed (see the lines above)" ;;
    esac
    [ -x "$interpreter" ] || fail "$interpreter: no such interpreter"
    printf '%s\n' "$interpreter" >"$target/.python"
    touch "$target/.complete"
fi
rm -f "$archive"
