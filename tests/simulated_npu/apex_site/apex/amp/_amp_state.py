"""Where apex keeps its loss scalers."""

from __future__ import annotations

from types import SimpleNamespace

_amp_state = SimpleNamespace(loss_scalers=[], verbosity=1)
