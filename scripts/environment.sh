# Sourced by the other scripts. `use_environment EXTRAS [FOLDER REQUIREMENT...]` activates a virtual
# environment and installs ppxcls with these extras. Without a folder, it uses the active environment, or
# .venv if none is active. A new environment has the interpreter $PYTHON, or python3 if it is not set. Nothing
# is installed twice: the name of a stamp file contains a checksum of pyproject.toml, the requirements and the
# path of the repository.
#
# `find_python VERSION...` prints the first of these versions (such as 3.12) that is installed, as the path of
# its interpreter. It looks on PATH, also at python3, and among the versions of pyenv. It fails if none is installed.

use_environment() {
    local extras=$1 folder=${2:-}
    shift $(($# < 2 ? $# : 2))
    if [ -n "$folder" ] || [ -z "${VIRTUAL_ENV:-}" ]; then
        folder=${folder:-.venv}
        # An environment of another Python is made anew, but only if the caller asks for a certain one.
        if [ ! -x "$folder/bin/python" ] ||
            { [ -n "${PYTHON:-}" ] && [ "$(python_version "$folder/bin/python")" != "$(python_version "$PYTHON")" ]; }; then
            "${PYTHON:-python3}" -m venv --clear "$folder"
        fi
        . "$folder/bin/activate"
    fi
    local digest stamp
    digest=$( (cat pyproject.toml; echo "$extras $*"; pwd) | cksum | cut -d' ' -f1)
    stamp="$VIRTUAL_ENV/.ppxcls-$digest"
    if [ ! -e "$stamp" ]; then
        echo "Installing ppxcls[$extras] $* into $VIRTUAL_ENV"
        # Python compiles what it imports, a third of the files. pip would compile all of them.
        python -m pip install --quiet --disable-pip-version-check --no-compile --editable ".[$extras]" "$@"
        touch "$stamp"
    fi
}

python_version() {
    "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null
}

find_python() {
    local version path
    for version in "$@"; do
        # A command of pyenv on PATH may exist and not run, so each is tried. Debian's may lack ensurepip.
        for path in "$(command -v "python$version")" "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$version".*/bin/python \
            "$(command -v python3)"; do
            if [ -n "$path" ] && [ "$(python_version "$path")" = "$version" ] &&
                "$path" -c 'import ensurepip, venv' 2>/dev/null; then
                echo "$path"
                return
            fi
        done
    done
    return 1
}
