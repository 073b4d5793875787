"""Starts a model from one that was trained on another charset: what both charsets share is kept.

K classes (K_old, K_new), C channels, U units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

CELL = "decoder.cell.linear.weight"
PROJECTION = "decoder.input_projection"
CLASSIFIER = "decoder.classifier"


@torch.no_grad()
def remap_charset_rows(
    state: Mapping[str, Tensor],
    old_characters: Sequence[str],
    new_characters: Sequence[str],
    fresh_state: Mapping[str, Tensor],
    use_autoregression: bool = True,
) -> tuple[dict[str, Tensor], list[str], list[str]]:
    """A state_dict for the new charset: shared characters keep what was learnt about them, others start fresh.

    Of each shared character are kept its row of the classifier (and bias), and what the decoder was told when it was
    the previous one: its column of the attention decoder's input projection, or of the NetSlice cell.

    The input projection is also as wide as the classes on its OUTPUT side, but there the K numbers are features of the
    cell's input that no character owns. All of them go along, with the cell's columns that read them. If K grows, the
    added features start with fresh rows and with columns of zero in the cell, so at first nothing changes for shared
    characters. If K shrinks, the features that move the cell most, by |column in the cell| * |row in the projection|,
    are the ones that stay.

    Args:
        state: state_dict of the trained model, K_old classes.
        old_characters, new_characters: what each class decodes to, as `Charset.characters`; the null counts as one.
        fresh_state: state_dict of a newly made model for the new charset, otherwise of the same architecture.
        use_autoregression: whether the NetSlice cell is told the previous character; its shapes do not tell.

    Returns:
        the state_dict, the characters kept, and the characters that start fresh.

    Raises:
        ValueError: the trained model is not of its charset, or the two models differ in more than their charsets.
    """
    old, new = len(old_characters), len(new_characters)
    has_projection = f"{PROJECTION}.weight" in state
    with_classes = {  # name -> its dimensions that grow with K
        f"{CLASSIFIER}.weight": (0,),
        f"{CLASSIFIER}.bias": (0,),
        f"{PROJECTION}.weight": (0, 1),
        f"{PROJECTION}.bias": (0,),
        CELL: (1,) if has_projection or use_autoregression else (),
    }
    _check_shapes(state, fresh_state, with_classes, old, new)
    old_ids = {character: number for number, character in enumerate(old_characters)}
    pairs = [(number, old_ids[character]) for number, character in enumerate(new_characters) if character in old_ids]
    new_ids, kept_ids = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).unbind(1)
    out = {name: (fresh_state if with_classes.get(name) else state)[name].clone() for name in fresh_state}
    for name in (f"{CLASSIFIER}.weight", f"{CLASSIFIER}.bias"):
        out[name][new_ids] = state[name][kept_ids]
    if has_projection:
        _remap_projection(state, out, new_ids, kept_ids)
    elif use_autoregression:
        _remap_net_slice_cell(state, out, new_ids, kept_ids, old, new)
    kept = [new_characters[number] for number in new_ids.tolist()]
    fresh = [character for character in new_characters if character not in old_ids]
    return out, kept, fresh


def _check_shapes(
    state: Mapping[str, Tensor], fresh: Mapping[str, Tensor], with_classes: Mapping[str, tuple], old: int, new: int
) -> None:
    """Both have the same tensors, of shapes that agree but for the number of classes, and those of their charsets."""
    bias = state.get(f"{CLASSIFIER}.bias")
    if bias is None or len(bias) != old:
        found = "no classifier" if bias is None else f"{len(bias)} classes"
        raise ValueError(
            f"the trained model has {found}, but its charset has {old} characters: they do not belong together"
        )
    for name in sorted({*state, *fresh}):
        dimensions = with_classes.get(name, ())
        shapes = [
            tuple(size - classes * (number in dimensions) for number, size in enumerate(tensors[name].shape))
            if name in tensors
            else None
            for tensors, classes in ((state, old), (fresh, new))
        ]
        if shapes[0] != shapes[1]:
            found, expected = (list(t[name].shape) if name in t else "nothing" for t in (state, fresh))
            raise ValueError(
                f"{name}: found {found}, expected {expected}: the models differ in more than their charsets"
            )


def _remap_projection(state: Mapping[str, Tensor], out: dict[str, Tensor], new_ids: Tensor, kept_ids: Tensor) -> None:
    """The attention decoder's input projection (K, K + C) and the columns (4U, K + U) of the cell that read it."""
    weight, bias, cell = state[f"{PROJECTION}.weight"], state[f"{PROJECTION}.bias"], state[CELL]
    old, new = len(bias), len(out[f"{PROJECTION}.bias"])
    effect = cell[:, :old].norm(dim=0) * torch.cat([weight, bias[:, None]], 1).norm(dim=1)  # (K_old,)
    features = effect.topk(min(old, new)).indices.sort().values
    rows = out[f"{PROJECTION}.weight"][: len(features)]  # a view
    rows[:, new_ids] = weight[features][:, kept_ids]  # previous characters
    rows[:, new:] = weight[features, old:]  # channels
    out[f"{PROJECTION}.bias"][: len(features)] = bias[features]
    out[CELL][:, :new] = 0
    out[CELL][:, : len(features)] = cell[:, features]
    out[CELL][:, new:] = cell[:, old:]


def _remap_net_slice_cell(
    state: Mapping[str, Tensor], out: dict[str, Tensor], new_ids: Tensor, kept_ids: Tensor, old: int, new: int
) -> None:
    """The NetSlice cell (4U, slice + K + U): the columns of the previous character lie before those of h.

    A GRU's h has a matrix of its own.
    """
    cell, fresh = state[CELL], out[CELL]
    hidden = 0 if "decoder.cell.hidden.weight" in state else state[f"{CLASSIFIER}.weight"].shape[1]
    start = cell.shape[1] - hidden - old
    fresh[:, :start] = cell[:, :start]
    fresh[:, start + new_ids] = cell[:, start + kept_ids]
    fresh[:, start + new :] = cell[:, start + old :]
