#!/usr/bin/env bash
# Measures images per second on 8 devices, or RANK_SIZE of them. Arguments: see common.sh; --data_path=FOLDER is needed.
exec bash "$(dirname "${BASH_SOURCE[0]}")/common.sh" performance "${RANK_SIZE:-8}" "$@"
