#!/usr/bin/env bash
# What the four train_*.sh share; by ModelZoo's contract. Usage: common.sh full|performance RANKS ARGUMENTS...
#
# --data_path=FOLDER is needed. Also: --device (npu), --device_id (0), --batch_size of a device (32), --train_steps,
# --load_from CHECKPOINT, --python (python3), --output FOLDER; anything behind -- goes to train.py as it is.
#
# A full training goes on from the checkpoints in FOLDER, those of a run that was stopped; another FOLDER starts anew.
set -euo pipefail

kind=$1 ranks=$2
shift 2
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "${here}/../.." && pwd)
data_path="" device=npu device_id=${ASCEND_DEVICE_ID:-0} batch_size=32 load_from="" python=python3 output=${root}/output
if [ "${kind}" = full ]; then train_steps=400000; else train_steps=200; fi
while [ $# -gt 0 ]; do
    case $1 in
        --data_path=*) data_path=${1#*=} ;;
        --device=*) device=${1#*=} ;;
        --device_id=*) device_id=${1#*=} ;;
        --batch_size=*) batch_size=${1#*=} ;;
        --train_steps=*) train_steps=${1#*=} ;;
        --load_from=*) load_from=${1#*=} ;;
        --python=*) python=${1#*=} ;;
        --output=*) output=${1#*=} ;;
        --) shift && break ;;
        *) echo "[Error] unknown argument $1: see the head of ${BASH_SOURCE[0]}" >&2 && exit 1 ;;
    esac
    shift
done
if [ -z "${data_path}" ]; then
    echo '[Error] para "data_path" must be config: --data_path=FOLDER with train/, validation/ and the charset file' >&2
    exit 1
fi
if [ "${device%%:*}" = npu ] && [ "${etp_running_flag:-}" != true ]; then
    # shellcheck source=tools/ascend/env_npu.sh
    set +u && source "${here}/env_npu.sh" && set -u
fi

network=AttentionOCR_for_PyTorch
mode=acc
if [ "${kind}" = performance ]; then mode=perf; fi
folder=${output}/${device_id}
case_name=${network}_bs$((batch_size * ranks))_${ranks}p_${mode}
log=${folder}/train_${device_id}.log
mkdir -p "${folder}"
if [ "${kind}" = performance ]; then rm -rf "${folder}/train_log" "${log}"; fi

launch=("${python}")
if [ "${ranks}" -gt 1 ]; then
    launch=("${python}" -m torch.distributed.run --standalone "--nproc_per_node=${ranks}")
elif [ "${device}" != cpu ] && [ "${device}" != auto ] && [ "${device#*:}" = "${device}" ]; then
    device=${device}:${device_id}
fi
flags=("--dataset_dir=${data_path}" "--device=${device}" --amp "--batch_size=${batch_size}"
    "--max_number_of_steps=${train_steps}" "--train_log_dir=${folder}/train_log")
if [ "${kind}" = full ]; then flags+=(--eval_after_training --eval_split=test); fi
if [ "${kind}" = performance ]; then flags+=(--log_interval_steps=10); fi
if [ -n "${load_from}" ]; then flags+=("--checkpoint=${load_from}"); fi

start=$(date +%s)
status=0
# In a session of its own a signal reaches it once, through this script: a second would end it before it saves.
PYTHONPATH=${root}:${PYTHONPATH:-} setsid "${launch[@]}" "${root}/train.py" "${flags[@]}" "$@" >> "${log}" 2>&1 &
training=$!
trap 'kill -TERM "${training}"; wait "${training}"; exit 143' TERM INT  # it saves before it ends
wait "${training}" || status=$?
trap - TERM INT
if [ "${status}" -ne 0 ]; then
    tail -n 20 "${log}" >&2
    echo "[Error] training ended with status ${status}: see ${log}" >&2
    exit "${status}"
fi
seconds=$(($(date +%s) - start))

"${python}" - "${log}" "${folder}/${case_name}.log" "${network}" "${ranks}" "${batch_size}" "${case_name}" "${kind}" \
    "${seconds}" << 'PYTHON' || { echo "[Error] the log has no figures: see ${log}" >&2 && exit 1; }
import platform
import re
import sys

log, case_log, network, ranks, batch_size, case_name, kind, seconds = sys.argv[1:]
text = open(log, encoding="utf-8").read()
rates = [float(rate) for rate in re.findall(r"^global step \d+: .*images/s ([0-9.]+)", text, re.M)]
losses = re.findall(r"^global step \d+: loss = (\S+)", text, re.M)
steady = rates[1:] or rates  # the first line holds the start: compilation, and the loss scale finding its place
fps = len(steady) / sum(1 / rate for rate in steady)  # lines stand for equally many steps, not for equal times
global_batch = int(batch_size) * int(ranks)
print("------------------ Final result ------------------")
print(f"Final Performance images/sec : {fps:.2f}")
lines = [("Network", network), ("RankSize", ranks), ("BatchSize", global_batch), ("DeviceType", platform.machine())]
lines += [("CaseName", case_name), ("ActualFPS", f"{fps:.2f}"), ("TrainingTime", f"{1000 * global_batch / fps:.2f}")]
if kind == "full":
    accuracy = re.findall(r"^eval/SequenceAccuracy\[([0-9.]+)\]", text, re.M)[-1]
    print(f"Final Train Accuracy : {accuracy}")
    lines.append(("TrainAccuracy", accuracy))
print(f"E2E Training Duration sec : {seconds}")
lines += [("ActualLoss", losses[-1]), ("E2ETrainingTime", seconds)]
if kind == "performance" and ranks == "1":
    # What the first two steps took, if all others of the first log line went at the pace of the later ones.
    logged = re.findall(r"^global step (\d+): .*\((\d+\.\d+) sec/step\)", text, re.M)
    first_steps, first_pace = int(logged[0][0]), float(logged[0][1])
    lines.append(("CompileTime", f"{first_steps * first_pace - (first_steps - 2) * global_batch / fps:.2f}"))
with open(case_log, "w", encoding="utf-8") as file:
    file.writelines(f"{name} = {value}\n" for name, value in lines)
PYTHON
