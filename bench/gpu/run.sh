#!/usr/bin/env bash
# Builds the extension modules of the source tree in place, where nothing can be installed, and runs the suite:
#   bench/gpu/run.sh --out FOLDER [OPTION]...      options: python3 -m bench.gpu --help
# Needs cmake, ninja, a C++ compiler and a python3 with torch, triton and pybind11; PyAV may be absent.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3}
start=$SECONDS
version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
"$python" -m cmake --version >/dev/null 2>&1 && cmake=("$python" -m cmake) || cmake=(cmake)
log=build/gpu/build.log
mkdir -p build/gpu
if ! {
  "${cmake[@]}" -S . -B build/gpu -G Ninja -DCMAKE_BUILD_TYPE=Release -DSKBUILD_PROJECT_VERSION="$version" \
    -DPython_EXECUTABLE="$(command -v "$python")" -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)" &&
    "${cmake[@]}" --build build/gpu -j "$(nproc)"
} >"$log" 2>&1; then
  tail -40 "$log"
  exit 1
fi
cp build/gpu/_*.so mmcore/
echo "[built in $((SECONDS - start)) s]"
exec "$python" -u -m bench.gpu "$@"
