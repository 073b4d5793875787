"""ModelArts: trains 200 steps for their speed; everything else as modelarts_entry_acc.py."""

from __future__ import annotations

import sys

from modelarts_entry_acc import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], mode="perf"))
