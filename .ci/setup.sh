#!/usr/bin/env bash
# Makes .venv with everything the project needs; called by `make setup`, safe to run again at any time.
#
# Knows: how to find a Python, a CPU build of torch and the software-GL libraries. Every step says what it does.
# Settings (environment): PYTHON=python3.12, TORCH_INDEX=<pip index with the torch build you want>.
set -euo pipefail
cd "$(dirname "$0")/.."

GL_PACKAGES="libegl1 libegl-mesa0 libgl1-mesa-dri libopengl0"
TORCH_REQUIREMENT="torch>=2.10,<2.14" # the same range as in pyproject.toml; tests/test_conf.py compares them
PYTORCH_CPU_INDEX="https://download.pytorch.org/whl/cpu"
STAMP=".venv/.setup-stamp"

say() { printf '[setup] %s\n' "$*"; }
stop() {
    printf '[setup] STOP: %s\n' "$1" >&2
    [ $# -gt 1 ] && printf '[setup] Run this line, then the same make command again:\n    %s\n' "$2" >&2
    exit 1
}

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    stop "Python 3.11 or newer is needed; found $(python3 --version 2>&1 || true)." \
        "make setup PYTHON=/path/to/python3.11"
}

# Installs Debian packages as root, or through sudo (which may ask for a password only on a terminal).
apt_install() {
    local root=()
    command -v apt-get >/dev/null || return 1
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null || return 1
        if [ -t 0 ]; then root=(sudo); else root=(sudo -n); fi
        "${root[@]}" true || return 1
    fi
    say "apt-get install $*"
    "${root[@]}" apt-get update -qq || say "apt-get update failed; trying with the lists at hand"
    "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

# Shows what pip downloads and installs, not what it considers.
pip_install() {
    .venv/bin/python -m pip install --disable-pip-version-check --progress-bar off "$@" \
        2> >(grep -v 'is ignored: it is neither a file nor a directory' >&2) |
        sed -unE '/^ *(Downloading|Building|Installing collected|Successfully)/ s/^ *(.{1,140}).*/[pip] \1/p'
}

make_venv() {
    local python
    python=$(find_python) || exit 1
    if [ -x .venv/bin/python ] && .venv/bin/python -m pip --version >/dev/null 2>&1; then
        say ".venv exists: $(.venv/bin/python --version)"
        return
    fi
    say "making .venv with $("$python" --version) ($(command -v "$python"))"
    rm -rf .venv
    if ! "$python" -m venv .venv; then
        rm -rf .venv
        apt_install python3-venv && "$python" -m venv .venv ||
            stop "$python cannot make a virtual environment." "sudo apt-get install -y python3-venv"
    fi
}

# Whether pip finds torch in an index: one try of a few seconds, so that a closed network is found out once.
has_torch() {
    timeout 20 .venv/bin/python -m pip --disable-pip-version-check index versions torch --index-url "$1" \
        --retries 0 --timeout 5 >/dev/null 2>&1
}

# PyPI's torch for Linux brings several GB of CUDA. Sources that pip is configured with decide first (they
# may hold a CPU build); only without any is PyTorch's CPU index added. TORCH_INDEX overrides both.
install_torch() {
    local source=() configured
    configured=$(.venv/bin/python -m pip config list)
    if [ -n "${TORCH_INDEX:-}" ]; then
        source=(--index-url "$TORCH_INDEX")
    elif [ "$(uname -s)" = Linux ] && ! grep -Eq '(find-links|index-url)=' <<<"$configured"; then
        if has_torch "$PYTORCH_CPU_INDEX"; then
            source=(--extra-index-url "$PYTORCH_CPU_INDEX")
        else
            say "$PYTORCH_CPU_INDEX cannot be reached; torch comes from pip's own index, perhaps with CUDA (GBs)"
        fi
    fi
    say "installing $TORCH_REQUIREMENT ${source[*]}"
    pip_install "$TORCH_REQUIREMENT" "${source[@]}"
    .venv/bin/python -c 'import torch; print(f"[setup] torch {torch.__version__}")'
}

check_rendering() {
    say "rendering a test frame with MuJoCo"
    .venv/bin/python -m experiments.rendering_check && return
    apt_install $GL_PACKAGES || stop "the software-GL libraries are missing and could not be installed here." \
        "sudo apt-get update && sudo apt-get install -y --no-install-recommends $GL_PACKAGES"
    .venv/bin/python -m experiments.rendering_check ||
        stop "MuJoCo still cannot render; the message above says why." "ldconfig -p | grep -E 'libEGL|libOpenGL'"
}

fingerprint() { cat pyproject.toml .ci/setup.sh | cksum; pwd; }

if [ -x .venv/bin/python ] && [ -f "$STAMP" ] && [ "$(cat "$STAMP")" = "$(fingerprint)" ]; then
    say "up to date (.venv, torch, GL); 'make clean-venv' starts over"
    exit 0
fi
make_venv
install_torch
say "installing the package and its development tools (pip install -e .[dev])"
pip_install -e '.[dev]'
check_rendering
fingerprint >"$STAMP"
say "done: $(.venv/bin/python -m pip list 2>/dev/null | tail -n +3 | wc -l) packages in .venv"
