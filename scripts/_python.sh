# Sourced by the scripts here, with $root set: finds a Python, makes the environment, and leaves $python (of the
# environment) and $venv. Needs only python3 >= 3.11 with venv; what is missing is named with the command that mends it.

venv=${KITH_VENV:-$root/.venv}

kith_install_hint() { # what is missing, apt, dnf, pacman, zypper, apk, brew: prints the command of this system
    sudo="sudo "
    [ "$(id -u 2>/dev/null || echo 0)" != 0 ] || sudo=""
    if command -v brew >/dev/null 2>&1; then hint="brew install $6"
    elif command -v apt-get >/dev/null 2>&1; then hint="${sudo}apt-get install -y $1"
    elif command -v dnf >/dev/null 2>&1; then hint="${sudo}dnf install -y $2"
    elif command -v pacman >/dev/null 2>&1; then hint="${sudo}pacman -S --needed $3"
    elif command -v zypper >/dev/null 2>&1; then hint="${sudo}zypper install -y $4"
    elif command -v apk >/dev/null 2>&1; then hint="${sudo}apk add $5"
    else hint="see https://www.python.org/downloads/"
    fi
    printf '%s' "$hint"
}

kith_good_python() { # 3.11 to 3.14
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' >/dev/null 2>&1
}

kith_find_python() {
    for candidate in ${KITH_PYTHON:-} python3 python3.13 python3.12 python3.14 python3.11 python; do
        if command -v "$candidate" >/dev/null 2>&1 && kith_good_python "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    if command -v uv >/dev/null 2>&1; then # uv brings its own
        uv python find '>=3.11,<3.15' 2>/dev/null && return
        uv python install -q 3.13 >&2 && uv python find 3.13 && return
    fi
    packages='python3.11 python3.11-venv'
    if command -v python3 >/dev/null 2>&1; then
        echo "$(python3 --version 2>&1) is too old or too new: Python 3.11 to 3.14 is needed." >&2
    else
        packages='python3 python3-venv'
        echo "There is no python3 here: Python 3.11 to 3.14 is needed." >&2
    fi
    echo "→ $(kith_install_hint "$packages" python3.12 python python312 python3 \
        python@3.13)" >&2
    return 1
}

kith_environment() { # run | dev
    system_python=$(kith_find_python) || exit 2
    PYTHONPATH=$root "$system_python" -P -m scripts._env --venv "$venv" --kind "$1" || exit $?
    python=$venv/bin/python
}
