#!/usr/bin/env bash
# Makes .venv-franka: franky, franky-sim and the half of this project that a robot computer runs (no torch).
# Called by `make franka-setup`, safe to run again at any time. Settings: PYTHON=python3.12.
set -euo pipefail
cd "$(dirname "$0")/.."

VENV=.venv-franka
STAMP=$VENV/.setup-stamp
# What the robot half imports, with the versions of pyproject.toml where these matter; then what only this needs.
PACKAGES=(
    "numpy>=2.0" "jaxtyping>=0.3" "mujoco==3.3.0" "mink==0.0.13" "daqp>=0.5" "gymnasium>=1.2,<2"
    "onnxruntime>=1.20" "tokenizers>=0.21" "hydra-core>=1.3.8,<1.4" "tqdm>=4.66" "av>=14" "pillow>=11"
    "websockets>=15" "msgpack>=1.1"
    "franky-control>=2.0,<3" "franky-sim>=1.0.4,<2"
    "pytest>=8" "pytest-timeout>=2.3" "beartype>=0.19" "hypothesis>=6.100"
)

fingerprint() { cksum <"$0"; pwd; }

if [ -x "$VENV/bin/python" ] && [ -f "$STAMP" ] && [ "$(cat "$STAMP")" = "$(fingerprint)" ]; then
    echo "[franka-setup] up to date ($VENV)"
    exit 0
fi
"${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "[franka-setup] STOP: Python 3.11 or newer is needed; try: make franka-setup PYTHON=/path/to/python3.11" >&2
    exit 1
}
echo "[franka-setup] making $VENV (franky, franky-sim, no torch)"
rm -rf "$VENV"
"${PYTHON:-python3}" -m venv "$VENV"
"$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --progress-bar off "${PACKAGES[@]}" \
    2> >(grep -v 'is ignored: it is neither a file nor a directory' >&2)
fingerprint >"$STAMP"
echo "[franka-setup] done: $("$VENV/bin/python" -m pip list --disable-pip-version-check 2>/dev/null | grep -E 'franky' | tr -s ' ' | paste -sd' ')"
