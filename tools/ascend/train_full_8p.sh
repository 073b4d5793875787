#!/usr/bin/env bash
# Trains and evaluates on 8 devices, or RANK_SIZE of them. Arguments: see common.sh; --data_path=FOLDER is needed.
exec bash "$(dirname "${BASH_SOURCE[0]}")/common.sh" full "${RANK_SIZE:-8}" "$@"
