# Sourced by the other scripts: `use_environment EXTRAS [FOLDER REQUIREMENT...]` activates a virtual environment and installs ppxcls
# with these extras. Without a folder, the environment is the one that is active, or .venv. Nothing is installed twice: a stamp holds
# the digest of pyproject.toml and of the requirements.

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
