#!/usr/bin/env bash
# Trains and evaluates on 1 device. Arguments: see common.sh; --data_path=FOLDER is needed.
exec bash "$(dirname "${BASH_SOURCE[0]}")/common.sh" full 1 "$@"
