#!/usr/bin/env bash
# Writes the locked requirements anew from pyproject.toml, for every platform and Python from 3.11 on.
# Versions that still fit stay as they are; options (--upgrade, --upgrade-package NAME) go to uv.
set -euo pipefail
cd "$(dirname "$0")/.."
for extra in dev test-runtime; do
    uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
        --custom-compile-command requirements/compile.sh \
        --extra "$extra" --output-file "requirements/$extra.txt" "$@" pyproject.toml
done
