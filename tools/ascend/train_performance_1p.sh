#!/usr/bin/env bash
# Measures images per second on 1 device. Arguments: see common.sh; --data_path=FOLDER is needed.
exec bash "$(dirname "${BASH_SOURCE[0]}")/common.sh" performance 1 "$@"
