#!/usr/bin/env bash
# Writes the locked requirements anew from pyproject.toml, for every platform and Python from 3.11 on.
# Versions that still fit stay as they are; options (--upgrade, --upgrade-package NAME) go to uv.
set -euo pipefail
cd "$(dirname "$0")/.."
lock() {  # FILE OPTION...
    uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
        --custom-compile-command requirements/compile.sh --output-file "requirements/$1" "${@:2}" pyproject.toml
}
lock runtime.txt "$@"  # the base install
lock test-runtime.txt --extra test-runtime "$@"
lock dev.txt --extra dev "$@"
