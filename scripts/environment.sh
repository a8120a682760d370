# Sourced by the other scripts. `use_environment EXTRAS [FOLDER REQUIREMENT...]` activates a virtual
# environment and installs ppxcls with these extras. Without a folder, it uses the active environment, or
# .venv if none is active. Nothing is installed twice: the name of a stamp file contains a checksum of
# pyproject.toml, the requirements and the path of the repository.

use_environment() {
    local extras=$1 folder=${2:-}
    shift $(($# < 2 ? $# : 2))
    if [ -n "$folder" ] || [ -z "${VIRTUAL_ENV:-}" ]; then
        folder=${folder:-.venv}
        if [ ! -x "$folder/bin/python" ]; then
            "${PYTHON:-python3}" -m venv "$folder"
        fi
        . "$folder/bin/activate"
    fi
    local digest stamp
    digest=$( (cat pyproject.toml; echo "$extras $*"; pwd) | cksum | cut -d' ' -f1)
    stamp="$VIRTUAL_ENV/.ppxcls-$digest"
    if [ ! -e "$stamp" ]; then
        echo "Installing ppxcls[$extras] $* into $VIRTUAL_ENV"
        python -m pip install --quiet --disable-pip-version-check --editable ".[$extras]" "$@"
        touch "$stamp"
    fi
}
