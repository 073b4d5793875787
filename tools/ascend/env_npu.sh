#!/usr/bin/env bash
# Environment of a training on Ascend; sourced by the train_*.sh. docs/ascend.md says why each line is there.
for set_env in "${ASCEND_TOOLKIT_HOME:-}/set_env.sh" /usr/local/Ascend/ascend-toolkit/set_env.sh \
    "${HOME}/Ascend/ascend-toolkit/set_env.sh"; do
    if [ -f "${set_env}" ]; then
        # shellcheck disable=SC1090
        source "${set_env}"
        break
    fi
done
export ASCEND_GLOBAL_LOG_LEVEL=${ASCEND_GLOBAL_LOG_LEVEL:-3} # errors only
export ASCEND_SLOG_PRINT_TO_STDOUT=${ASCEND_SLOG_PRINT_TO_STDOUT:-0}
export TASK_QUEUE_ENABLE=${TASK_QUEUE_ENABLE:-2}             # launch operators from a thread of their own
export CPU_AFFINITY_CONF=${CPU_AFFINITY_CONF:-1}             # keep a process near its NPU
export HCCL_CONNECT_TIMEOUT=${HCCL_CONNECT_TIMEOUT:-1800}    # ranks compile at different speeds
export HCCL_WHITELIST_DISABLE=${HCCL_WHITELIST_DISABLE:-1}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}                 # data is decoded by processes, not threads
