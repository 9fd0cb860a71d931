#!/usr/bin/env bash
# What only a GPU can show, in one command, with all results in one folder:
#
#   bench/gpu_session.sh [FOLDER] [PART...]        parts: tests bench sanitize; default all three
#
# Needs python3 with torch, triton, numpy and safetensors; transformers for the comparison with it.
# pytest, pytest-xdist and hypothesis may come along: where there is a network and the same Python,
#   pip install --target build/gpu-site pytest pytest-xdist hypothesis
# Every part has a time limit (TESTS_SECONDS, BENCH_SECONDS, SANITIZE_SECONDS) and a log, and a part
# that fails does not keep the next one from running. Exit status 1 if any part failed.
set -uo pipefail
cd "$(dirname "$0")/.."

folder=${1:-build/gpu-session}
shift || true
parts=${*:-tests bench sanitize}
python=${PYTHON:-python3}
export PYTHONPATH="$PWD/.types:$PWD/build/gpu-site${PYTHONPATH:+:$PYTHONPATH}"
mkdir -p "$folder"
failed=0

note() { echo "$*" | tee -a "$folder/summary.txt"; }

# run NAME SECONDS COMMAND...: one part, its output in NAME.log
run() {
  local name=$1 limit=$2 begun=$SECONDS status
  shift 2
  timeout --kill-after=10 "$limit" "$@" >"$folder/$name.log" 2>&1
  status=$?
  case $status in
    0) note "$name: passed in $((SECONDS - begun)) s" ;;
    124 | 137) note "$name: cut after $limit s" ; failed=1 ;;
    *) note "$name: FAILED (status $status) after $((SECONDS - begun)) s" ; failed=1 ;;
  esac
  tail -n 3 "$folder/$name.log"
}

has() { "$python" -c "import $1" 2>/dev/null; }

pytest_gpu=("$python" -m pytest -m gpu -W default -p no:cacheprovider -q)
if [[ -n ${SESSION_ANYWHERE:-} ]]; then # tries the script out where there is no GPU
  pytest_gpu=("$python" -m pytest -W default -p no:cacheprovider -q)
fi

: >"$folder/summary.txt"
nvidia-smi >"$folder/machine.txt" 2>&1 || note "nvidia-smi: not there"
"$python" -c 'import platform, torch, triton
print(platform.python_version(), torch.__version__, triton.__version__, torch.version.cuda)' \
  >>"$folder/machine.txt" 2>&1

for part in $parts; do
  case $part in
    tests)
      if ! has pytest; then
        note "tests: pytest is not installed (see the head of $0)"
        failed=1
        continue
      fi
      # Kernels are compiled for every shape that is drawn: in parallel, where that is possible.
      has xdist && workers=(-n 8) || workers=()
      run tests "${TESTS_SECONDS:-300}" "${pytest_gpu[@]}" ${workers[@]+"${workers[@]}"} \
        tests/runtime/device tests/kernels/device
      ;;
    bench)
      seconds=${BENCH_SECONDS:-460}
      run bench $((seconds + 30)) "$python" -m dycoke_trt.bench.experiments.gpu -o "$folder/bench.json" \
        --seconds "$seconds" ${BENCH_ARGS:-}
      ;;
    sanitize)
      sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer 2>/dev/null | head -1)
      if [[ -z $sanitizer ]]; then
        note "sanitize: compute-sanitizer is not there"
        continue
      fi
      for tool in memcheck racecheck; do
        run "$tool" "${SANITIZE_SECONDS:-120}" "$sanitizer" --tool "$tool" --error-exitcode 1 \
          "${pytest_gpu[@]}" tests/kernels/device -k "two_launches or more_blocks or rotary or fused"
      done
      ;;
    *)
      note "unknown part $part; parts: tests bench sanitize"
      failed=1
      ;;
  esac
done
exit $failed
