#!/usr/bin/env bash
# Runs on the machine with the GPU, in the folder that pack.sh made: self-test, sanitizer, training
# of tiger and rqt and their searches, within SECONDS_LEFT (560) seconds. Results go to OUT (results/): JSON, logs, nothing above 16 MB.
set -uo pipefail
cd "$(dirname "$0")"
out=${OUT:-results}
end=$((SECONDS + ${SECONDS_LEFT:-560}))
mkdir -p "$out"
left() { echo $((end - SECONDS)); }
[ -x sidrec ] || xz -dk sidrec.xz && chmod +x sidrec

# CUDA 13 libraries: the toolkit's, or those of the Python packages.
for folder in /usr/local/cuda/lib64 /usr/local/cuda-13*/targets/*/lib \
    $(python3 -c 'import site, glob, os
for s in site.getsitepackages(): print(*glob.glob(os.path.join(s, "nvidia", "*", "lib")))' 2>/dev/null); do
    [ -d "$folder" ] && LD_LIBRARY_PATH="$folder${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
done
export LD_LIBRARY_PATH
{
    date -u; cat commit; nvidia-smi; ldd --version | head -1; ldd ./sidrec; echo "$LD_LIBRARY_PATH" | tr : '\n'
} > "$out/machine.txt" 2>&1

timeout "$(left)" ./sidrec gpu-selftest --time-limit $(($(left) / 2)) > "$out/selftest.json" 2> "$out/selftest.log"
echo "self-test: exit code $?" | tee -a "$out/summary.txt"
# The same with large products by cuBLASLt, of decoding too.
SIDREC_CUBLASLT= timeout "$(left)" ./sidrec gpu-selftest --time-limit $(($(left) / 5)) \
    > "$out/selftest-cublaslt.json" 2> "$out/selftest-cublaslt.log"
echo "self-test by cuBLASLt: exit code $?" | tee -a "$out/summary.txt"

if command -v compute-sanitizer > /dev/null && [ "$(left)" -gt 60 ]; then
    for tool in memcheck racecheck; do
        timeout $(($(left) / 3)) compute-sanitizer --tool $tool --error-exitcode 9 \
            ./sidrec gpu-selftest --time-limit 0 > "$out/$tool.json" 2> "$out/$tool.log"
        echo "$tool: exit code $?" | tee -a "$out/summary.txt"
    done
fi

if [ -d data ] && [ "$(left)" -gt 120 ]; then
    items=$(ls data/items.*) interactions=$(ls data/interactions.*)
    ./sidrec sids build --items $items --out catalogue > "$out/sids.json" 2> "$out/sids.log"
    for bench in fit encode; do
        for device in cuda cpu; do
            timeout 30 ./sidrec bench $bench --items 100000 --dim 768 --codebook-size 1024 --iterations 5 --runs 1 \
                --device $device --json > "$out/bench-$bench-$device.json" 2> "$out/bench-$bench-$device.log"
            echo "bench $bench on $device: exit code $?" | tee -a "$out/summary.txt"
        done
    done
    for model in tiger rqt; do
        timeout 60 ./sidrec bench train --model $model --device cuda --json > "$out/bench-train-$model.json" \
            2> "$out/bench-train-$model.log"
        SIDREC_CUBLASLT= timeout 60 ./sidrec bench train --model $model --device cuda --json \
            > "$out/bench-train-$model-cublaslt.json" 2> "$out/bench-train-$model-cublaslt.log"
        echo "bench train $model by cuBLASLt: exit code $?" | tee -a "$out/summary.txt"
        preset=default
        [ $model = tiger ] && preset=grid
        timeout "$(left)" ./sidrec train --catalogue catalogue --interactions $interactions --model $model \
            --preset $preset --device cuda --time-limit $((($(left) - 60) / 2)) --out run-$model \
            > "$out/train-$model.json" 2> "$out/train-$model.log"
        echo "train $model: exit code $?" | tee -a "$out/summary.txt"
        cp run-$model/metrics.jsonl "$out/metrics-$model.jsonl"
    done
    for device in cuda cpu; do
        timeout "$(left)" ./sidrec eval --run run-tiger --catalogue catalogue --interactions $interactions \
            --device $device --report "$out/eval-$device.json" > /dev/null 2> "$out/eval-$device.log"
        echo "eval on $device: exit code $?" | tee -a "$out/summary.txt"
    done
fi
cat "$out/summary.txt"
