"""A synthetic data set of street signs, as numbers: what it depends on, and the presets."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from aocr_torch.data.charset import Charset
from aocr_torch.data.synthetic_effects import SignEffects, SynthesisError
from aocr_torch.data.synthetic_names import SHORTEST_MAX_LENGTH, NameStyle, Split, charset_of

DRAWING_VERSION = 4
"""Raised with every change that draws other signs from the same parameters."""


@dataclass(frozen=True)
class SyntheticParameters:
    """A synthetic data set, entirely."""

    num_train: int = 2000
    """Signs in train/."""
    num_validation: int = 200
    """Signs in validation/; their names occur in no other split."""
    num_test: int = 200
    """Signs in test/; their names occur in no other split."""
    num_views: int = 4
    """Views of each sign, side by side."""
    height: int = 150
    """Height of the picture in pixels."""
    view_width: int = 150
    """Width of one view in pixels: the picture is num_views times as wide."""
    max_length: int = 37
    """Characters in the longest name, and length of the padded label."""
    names: NameStyle = "french"
    """french: a grammar of French street names, in FSNS's charset. short: "Rue" and an invented name of few letters."""
    difficulty: float = 1.0
    """0 .. 1: the share of the effects that is drawn; 0 is a clean plate from the front."""
    seed: int = 0
    """Another seed draws other signs; the names of a split stay held out from the others under every seed."""
    records_per_shard: int = 250
    """Records in one file; a file is drawn by one process."""
    effects: SignEffects = field(default_factory=SignEffects)
    """What happens to the signs at difficulty 1."""

    def counts(self) -> dict[Split, int]:
        """Number of records by split."""
        return {"train": self.num_train, "validation": self.num_validation, "test": self.num_test}

    def charset(self) -> Charset:
        """That of the names; id 0 is the space and the last id the null."""
        return charset_of(self.names)

    def check(self) -> None:
        """Raises SynthesisError, naming the field, where a value cannot be drawn."""
        lowest = {
            **{"num_train": 0, "num_validation": 0, "num_test": 0, "num_views": 1, "seed": 0, "records_per_shard": 1},
            **{"height": 16, "view_width": 16, "max_length": SHORTEST_MAX_LENGTH},
        }
        for name, least in lowest.items():
            if getattr(self, name) < least:
                raise SynthesisError(f"{name} is {getattr(self, name)}: expected at least {least}")
        if not any(self.counts().values()):
            raise SynthesisError("num_train, num_validation and num_test are all 0: nothing to draw")
        if not 0 <= self.difficulty <= 1:
            raise SynthesisError(f"difficulty is {self.difficulty}: expected 0 .. 1")
        if self.names not in ("french", "short"):
            raise SynthesisError(f"names is {self.names!r}: expected 'french' or 'short'")
        self.effects.check()


PRESETS: dict[str, SyntheticParameters] = {
    "fsns": SyntheticParameters(),
    "demo": SyntheticParameters(
        num_train=8000,
        num_views=2,
        height=48,
        view_width=96,
        max_length=10,
        names="short",
        effects=replace(
            SignEffects.off(),
            upper_case=1.0,
            posts=0.4,
            condensed=0.3,
            margin=0.05,
            distance=0.1,
            shift=0.5,
            yaw=15,
            pitch=8,
            rotation=2,
            blur=0.5,
            low_resolution=0.1,
            light=0.25,
            tint=0.08,
            noise=4,
            missing_views=0.1,
        ),
    ),
}
"""fsns: like FSNS in size and difficulty. demo: short names on clean plates, learned on two CPU cores in minutes."""
