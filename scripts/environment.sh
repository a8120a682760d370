# Sourced by the other scripts: `use_environment EXTRAS` activates a virtual environment and installs ppxcls with these extras.
# The environment is the one that is active, or .venv. Nothing is installed twice: a stamp holds the digest of pyproject.toml.

use_environment() {
    local extras=$1
    if [ -z "${VIRTUAL_ENV:-}" ]; then
        if [ ! -x .venv/bin/python ]; then
            "${PYTHON:-python3}" -m venv .venv
        fi
        . .venv/bin/activate
    fi
    local digest stamp
    digest=$(python -c 'import hashlib, pathlib; print(hashlib.sha256(pathlib.Path("pyproject.toml").read_bytes()).hexdigest()[:16])')
    stamp="$VIRTUAL_ENV/.ppxcls-${extras//,/-}-$digest-$(pwd | cksum | cut -d' ' -f1)"
    if [ ! -e "$stamp" ]; then
        echo "Installing ppxcls[$extras] into $VIRTUAL_ENV"
        python -m pip install --quiet --disable-pip-version-check --editable ".[$extras]"
        touch "$stamp"
    fi
}
