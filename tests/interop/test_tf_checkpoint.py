import hashlib
import json

import numpy as np
import pytest

from aocr_torch.files import CheckpointError, masked_crc
from aocr_torch.interop.tf_checkpoint import open_checkpoint, write_checkpoint
from aocr_torch.interop.tf_messages import MESSAGES, slice_key
from aocr_torch.interop.tf_table import Table, pack_table

PARTS = [((0, 1), (0, None), (0, None), (0, None)), ((1, 2), (0, None), (0, None), (0, None))]
SCOPE = "AttentionOcr_v1/conv_tower_fn/INCE/"


def read_all(path):
    with open_checkpoint(path) as reader:
        values = {name: reader.tensor(name) for name in reader.variables}
        for name, (dtype, shape) in reader.variables.items():
            assert (values[name].dtype, values[name].shape) == (dtype, shape)
        return reader.format, values


def assert_all_same(same, values, expected):
    assert sorted(values) == sorted(expected)
    for name, value in values.items():
        same(value, expected[name])


def test_v2_round_trip(tmp_path, variables, same):
    files = write_checkpoint(tmp_path / "model.ckpt-7", variables)
    assert sorted(path.name for path in tmp_path.iterdir()) == [path.name for path in sorted(files)]
    format_, values = read_all(tmp_path / "model.ckpt-7")
    assert format_ == "V2"
    assert_all_same(same, values, variables)
    assert all(value.flags.writeable for value in values.values())


def test_v1(tmp_path, variables, craft, same):
    (tmp_path / "x.ckpt").write_bytes(craft.v1_table(variables))
    format_, values = read_all(tmp_path / "x.ckpt")
    assert format_ == "V1"
    assert_all_same(same, values, variables)
    assert all(value.flags.writeable for value in values.values())


def test_several_slices_and_shards(tmp_path, variables, craft, same):
    (tmp_path / "x.ckpt").write_bytes(craft.v1_table(variables, {"a/weights": PARTS}))
    assert_all_same(same, read_all(tmp_path / "x.ckpt")[1], variables)
    craft.v2_bundle(tmp_path / "y", variables, {"a/weights": PARTS}, shards=3)
    with open_checkpoint(tmp_path / "y") as reader:
        assert sorted(path.name[-14:] for path in reader.files[1:]) == [f"0000{n}-of-00003" for n in range(3)]
        assert_all_same(same, {name: reader.tensor(name) for name in reader.variables}, variables)


def test_v1_in_several_files(tmp_path, variables, craft, same):
    names = sorted(variables)
    split = {"a/weights": PARTS}
    for number, chosen in enumerate([names[::2], names[1::2]]):
        data = craft.v1_table({name: variables[name] for name in chosen}, split)
        (tmp_path / f"x.ckpt-0000{number}-of-00002").write_bytes(data)
    assert_all_same(same, read_all(tmp_path / "x.ckpt")[1], variables)
    (tmp_path / "x.ckpt-00001-of-00002").unlink()
    with pytest.raises(CheckpointError, match="do not make one whole checkpoint"):
        open_checkpoint(tmp_path / "x.ckpt")


def test_bfloat16_is_widened(tmp_path, craft, same):
    bits = np.array([0x3F80, 0xC049, 0x7F80, 0x0001], np.uint16)
    craft.v2_bundle(tmp_path / "x", {"v": bits}, dtypes={"v": "bfloat16"})
    with open_checkpoint(tmp_path / "x") as reader:
        assert reader.variables == {"v": ("bfloat16", (4,))}
        same(reader.tensor("v"), np.array([1.0, -3.140625, np.inf, 9.183549615799121e-41], np.float32))


def test_types_that_are_listed_but_not_read(tmp_path, craft):
    craft.v2_bundle(tmp_path / "x", {"v": np.zeros(2, np.uint8)}, dtypes={"v": "string"})
    with open_checkpoint(tmp_path / "x") as reader:
        assert reader.variables == {"v": ("string", (2,))}
        with pytest.raises(CheckpointError, match="type string"):
            reader.tensor("v")
    with pytest.raises(CheckpointError, match="complex64 cannot be written"):
        write_checkpoint(tmp_path / "y", {"v": np.zeros(2, np.complex64)})


def test_unknown_variable_and_closed_reader(tmp_path, variables, craft):
    write_checkpoint(tmp_path / "x", variables)
    (tmp_path / "v1").write_bytes(craft.v1_table(variables))
    for path in (tmp_path / "x", tmp_path / "v1"):
        with open_checkpoint(path) as reader, pytest.raises(CheckpointError, match="nearest is a/weights"):
            reader.tensor("a/weight")
        with pytest.raises(CheckpointError, match="was closed"):
            reader.tensor("a/weights")


def test_object_based_checkpoint(tmp_path, craft):
    graph = {
        "_CHECKPOINTABLE_OBJECT_GRAPH": np.zeros(9, np.uint8),
        "model/w/.ATTRIBUTES/VARIABLE_VALUE": np.zeros(2, "f"),
    }
    craft.v2_bundle(tmp_path / "x", graph, dtypes={"_CHECKPOINTABLE_OBJECT_GRAPH": "string"})
    with pytest.raises(CheckpointError, match=r"object-based checkpoint .*compat\.v1\.train\.Saver"):
        open_checkpoint(tmp_path / "x")


def test_missing_shard(tmp_path, variables, craft):
    craft.v2_bundle(tmp_path / "x", variables, shards=2)
    (tmp_path / "x.data-00001-of-00002").unlink()
    with pytest.raises(CheckpointError, match=r"x\.data-00001-of-00002: this shard .* is missing"):
        open_checkpoint(tmp_path / "x")


def test_index_under_another_name(tmp_path, variables):
    _, index = write_checkpoint(tmp_path / "x", variables)
    index.rename(tmp_path / "renamed")
    with pytest.raises(CheckpointError, match="without a list of variables; if this is the index"):
        open_checkpoint(tmp_path / "renamed")


# What follows has correct CRCs and contradicts itself.


def bundle_with(tmp_path, change, header=None, shape=(2, 3)):
    """A bundle of one float32 variable whose entry `change` has altered."""
    value = np.arange(6, dtype=np.float32)
    (tmp_path / "x.data-00000-of-00001").write_bytes(value.tobytes())
    entry = MESSAGES["BundleEntry"](dtype=1, size=24, crc32c=masked_crc(value.tobytes()))
    for size in shape:
        entry.shape.dim.add(size=size)
    change(entry)
    header = MESSAGES["BundleHeader"](num_shards=1) if header is None else header
    entries = [(b"", header.SerializeToString()), (b"v", entry.SerializeToString())]
    (tmp_path / "x.index").write_bytes(pack_table(entries))
    return tmp_path / "x"


def set_field(**fields):
    def change(entry):
        for name, value in fields.items():
            setattr(entry, name, value)

    return change


def add_slices(*slices):
    def change(entry):
        for extents in slices:
            message = entry.slices.add()
            for start, length in extents:
                message.extent.add(start=start, length=length)

    return change


@pytest.mark.parametrize(
    ("change", "shape", "message"),
    [
        (set_field(size=2**62), (2, 3), "has 4611686018427387904 bytes, expected float32"),
        (set_field(size=-1), (2, 3), "has -1 bytes"),
        (set_field(offset=2**62), (2, 3), "truncated or damaged"),
        (set_field(offset=-8), (2, 3), "truncated or damaged"),
        (set_field(shard_id=5), (2, 3), "refers to shard 5 of 1"),
        (set_field(shard_id=-1), (2, 3), "refers to shard -1 of 1"),
        (set_field(dtype=77), (2, 3), "type number 77"),
        (set_field(crc32c=1), (2, 3), "crc of v at byte 0"),
        (set_field(), (2**40, 2**40), "absurd"),
        (set_field(), (0, 2**62), "absurd"),
        (set_field(size=0), (2**30, 2**10), "has 0 bytes"),
        (set_field(), (-1, 3), "is none"),
        (set_field(), (1,) * 40, "is none"),
        (add_slices([(0, 2), (0, 3)]), (2, 3), "its entry is not there"),
        (add_slices([(0, 1), (0, 3)]), (2, 3), "do not cover"),
        (add_slices([(0, 2)]), (2, 3), "rank 1"),
        (add_slices([(0, 1), (2, 2)]), (2, 3), "from 2 to 4 in a dimension of 3"),
        (add_slices([(0, 2**39), (0, 1)], [(2**39, 2**39), (0, 1)]), (2**40, 1), "larger than the file"),
    ],
)
def test_entries_with_a_right_crc_and_wrong_contents(tmp_path, change, shape, message):
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(bundle_with(tmp_path, change, shape=shape)).tensor("v")


def test_big_endian_and_broken_messages(tmp_path):
    header = MESSAGES["BundleHeader"](num_shards=1, endianness=1)
    with pytest.raises(CheckpointError, match="big-endian"):
        open_checkpoint(bundle_with(tmp_path, set_field(), header))
    index = tmp_path / "x.index"
    for entries, message in [
        ([(b"v", b"")], "without the header"),
        ([(b"", b"\xff")], "is no BundleHeader"),
        ([(b"", b""), (b"\xff\xfe", b"")], "not UTF-8"),
    ]:
        index.write_bytes(pack_table(entries))
        with pytest.raises(CheckpointError, match=message):
            open_checkpoint(tmp_path / "x")


def test_overlapping_and_contradicting_slices(tmp_path, variables, craft):
    value = {"v": np.arange(12, dtype=np.float32).reshape(4, 3)}
    overlapping = {"v": [((0, 2), (0, None)), ((0, 1), (0, None)), ((1, 1), (0, None))]}
    craft.v2_bundle(tmp_path / "x", value, overlapping)
    with pytest.raises(CheckpointError, match="slices overlap"):
        open_checkpoint(tmp_path / "x").tensor("v")
    halves = {"v": [((0, 2), (0, None)), ((2, 2), (0, None))]}
    craft.v2_bundle(tmp_path / "y", {"v": value["v"]}, halves)
    entries = dict(craft.read_table(tmp_path / "y.index"))
    entries[slice_key("v", halves["v"][0])] = MESSAGES["BundleEntry"](dtype=3, size=24).SerializeToString()
    (tmp_path / "y.index").write_bytes(pack_table(sorted(entries.items())))
    with pytest.raises(CheckpointError, match="disagrees with it on type or shape"):
        open_checkpoint(tmp_path / "y").tensor("v")


def v1_with(tmp_path, craft, change):
    """A V1 file of one float32 variable `v`, its entries altered by change(entries, listing)."""
    (tmp_path / "x").write_bytes(craft.v1_table({"v": np.arange(6, dtype=np.float32)}))
    entries = dict(craft.read_table(tmp_path / "x"))
    listing = MESSAGES["SavedTensorSlices"].FromString(entries[b""])
    change(entries, listing)
    entries[b""] = listing.SerializeToString()
    (tmp_path / "x").write_bytes(pack_table(sorted(entries.items())))
    return tmp_path / "x"


KEY = slice_key("v", [(0, None)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda entries, listing: entries.pop(KEY), "values are not there"),
        (lambda entries, listing: entries.update({KEY: b"\xff"}), "is no SavedTensorSlices"),
        (lambda entries, listing: entries.update({KEY: b""}), "something else"),
        (lambda entries, listing: setattr(listing.meta.tensor[0], "type", 3), "holds 0 values"),
        (lambda entries, listing: setattr(listing.meta.tensor[0], "type", 14), "V1 checkpoints cannot hold"),
        (lambda entries, listing: setattr(listing.meta.tensor[0].shape.dim[0], "size", 7), "holds 6 values"),
        (lambda entries, listing: setattr(listing.meta.tensor[0].shape.dim[0], "size", 2**47), "holds 6 values"),
        (lambda entries, listing: listing.meta.tensor[0].ClearField("slice"), "no slices"),
        (lambda entries, listing: setattr(listing.meta.tensor[0], "name", b"\xff"), "not UTF-8"),
        (lambda entries, listing: listing.meta.tensor.add(name=b"v", type=1), "no slices|disagree"),
        (lambda entries, listing: listing.meta.tensor.add(name=b"v", type=9).slice.add(), "disagree"),
    ],
)
def test_v1_with_right_crcs_and_wrong_contents(tmp_path, craft, change, message):
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(v1_with(tmp_path, craft, change)).tensor("v")


def test_v1_half_of_more_than_16_bits(tmp_path, craft):
    (tmp_path / "x").write_bytes(craft.v1_table({"h": np.zeros(2, np.float16)}))
    entries = dict(craft.read_table(tmp_path / "x"))
    key = slice_key("h", [(0, None)])
    message = MESSAGES["SavedTensorSlices"].FromString(entries[key])
    message.data.data.half_val[1] = 1 << 16
    (tmp_path / "x").write_bytes(pack_table(sorted({**entries, key: message.SerializeToString()}.items())))
    with pytest.raises(CheckpointError, match="more than 16 bits"):
        open_checkpoint(tmp_path / "x").tensor("h")


@pytest.mark.parametrize(
    ("name", "extents", "key"),
    [
        ("s", [], b"\0s\0\1\0"),
        ("Mixed/w", [(0, None)] * 2, b"\0Mixed/w\0\1\1\2\x80\x7f\x80\x7f"),
        ("w", [(63, 64), (8192, 1 << 20)], b"\0w\0\1\1\2\xbf\xc0\x40\xe0\x20\0\xf0\x10\0\0"),
        ("a\0b", [], b"\0a\0\xffb\0\1\0"),
    ],
)
def test_slice_key(name, extents, key):
    assert slice_key(name, extents) == key


# The reference's own files.


def test_golden_v2(reference, same):
    golden = reference / "golden"
    expected = json.loads((golden / "variables.json").read_text())
    format_, values = read_all(golden / "ckpt_v2")
    assert format_ == "V2"
    shapes = {name: tuple(shape) for name, shape in expected["model_variables"].items()}
    assert {n: v.shape for n, v in values.items() if n in shapes} == shapes
    assert set(values) == {*shapes, *expected["slots"], "global_step"}
    assert values["global_step"] == 123
    _, old = read_all(golden / "old_names")
    for old_name, name in expected["old_names"].items():
        same(old[old_name], values[name])
    for name in set(old) - set(expected["old_names"]) - {"global_step"}:
        assert name.endswith("/Momentum")
        assert old[name].ndim == 1


def test_golden_v1(reference, same):
    golden = reference / "golden"
    expected = json.loads((golden / "variables.json").read_text())
    format_, values = read_all(golden / "ckpt_v1" / "inception_v3.ckpt")
    assert format_ == "V1"
    _, v2 = read_all(golden / "ckpt_v2" / "model.ckpt-123")
    extra = np.load(golden / "ckpt_v1" / "extra_values.npz")
    assert set(values) == {*expected["tower_variables_in_ckpt_v1"], *extra.files}
    for name, value in values.items():
        same(value, extra[name] if name in extra.files else v2[SCOPE + name])


@pytest.mark.parametrize("config", ["attention_noar", "netslice", "netslice_ar", "coords"])
def test_golden_layers(reference, config):
    _, values = read_all(reference / "golden" / "layers_ckpt" / config)
    assert all(name.startswith("AttentionOcr_v1/sequence_logit_fn/SQLR/") for name in values)
    assert len(values) == (4 if config.startswith("netslice") else 12)


def test_golden_bundle_is_written_again_byte_for_byte(reference, tmp_path):
    folder = reference / "golden" / "ckpt_v2"
    _, values = read_all(folder)
    data, _ = write_checkpoint(tmp_path / "again", values)
    original = folder / "model.ckpt-123.data-00000-of-00001"
    assert hashlib.sha256(data.read_bytes()).digest() == hashlib.sha256(original.read_bytes()).digest()


def test_slices_that_cover_more_than_the_variable(tmp_path, craft):
    value = {"v": np.arange(12, dtype=np.float32).reshape(4, 3)}
    overlapping = {"v": [((0, 3), (0, None)), ((2, 2), (0, None))]}  # everything, row 2 twice
    craft.v2_bundle(tmp_path / "x", value, overlapping)
    with pytest.raises(CheckpointError, match="do not cover"):
        open_checkpoint(tmp_path / "x").tensor("v")


def test_a_crc_of_zero_is_a_crc(tmp_path):
    value = np.arange(6, dtype=np.float32)
    write_checkpoint(tmp_path / "x", {"v": value})
    entries = dict((k, bytes(v)) for k, v in Table(tmp_path / "x.index").items())
    entry = MESSAGES["BundleEntry"].FromString(entries[b"v"])
    entry.ClearField("crc32c")
    entries[b"v"] = entry.SerializeToString()
    (tmp_path / "x.index").write_bytes(pack_table(sorted(entries.items())))
    with pytest.raises(CheckpointError, match="crc of v"):
        open_checkpoint(tmp_path / "x").tensor("v")


def test_a_slice_of_another_type_and_the_same_size(tmp_path, craft):
    value = {"v": np.arange(12, dtype=np.float32).reshape(4, 3)}
    halves = {"v": [((0, 2), (0, None)), ((2, 2), (0, None))]}
    craft.v2_bundle(tmp_path / "x", value, halves)
    entries = dict(craft.read_table(tmp_path / "x.index"))
    key = slice_key("v", halves["v"][0])
    entry = MESSAGES["BundleEntry"].FromString(entries[key])
    entry.dtype = 3  # int32: as many bytes
    entries[key] = entry.SerializeToString()
    (tmp_path / "x.index").write_bytes(pack_table(sorted(entries.items())))
    with pytest.raises(CheckpointError, match="disagrees with it on type or shape"):
        open_checkpoint(tmp_path / "x").tensor("v")


def test_v1_slices_filed_under_each_others_keys(tmp_path, craft):
    halves = {"v": [((0, 2), (0, None)), ((2, 2), (0, None))]}
    data = craft.v1_table({"v": np.arange(12, dtype=np.float32).reshape(4, 3)}, halves)
    (tmp_path / "x").write_bytes(data)
    entries = dict(craft.read_table(tmp_path / "x"))
    first, second = (slice_key("v", extents) for extents in halves["v"])
    entries[first], entries[second] = entries[second], entries[first]
    (tmp_path / "x").write_bytes(pack_table(sorted(entries.items())))
    with pytest.raises(CheckpointError, match="under its key lies something else"):
        open_checkpoint(tmp_path / "x").tensor("v")


def test_v1_values_that_end_in_the_middle_of_a_number(tmp_path, craft):
    (tmp_path / "x").write_bytes(craft.v1_table({"v": np.arange(6, dtype=np.float32)}))
    entries = dict(craft.read_table(tmp_path / "x"))
    key = slice_key("v", ((0, None),))
    entry = MESSAGES["SavedTensorSlices"].FromString(entries[key])
    entry.data.data.float_val += b"\0"
    entries[key] = entry.SerializeToString()
    (tmp_path / "x").write_bytes(pack_table(sorted(entries.items())))
    with pytest.raises(CheckpointError, match="it holds 6 values"):
        open_checkpoint(tmp_path / "x").tensor("v")


def test_v1_shards_that_disagree_on_the_shape(tmp_path, craft):
    upper = craft.v1_table({"v": np.zeros((4, 3), np.float32)}, {"v": [((0, 2), (0, None))]})
    lower = craft.v1_table({"v": np.zeros((5, 3), np.float32)}, {"v": [((2, 2), (0, None))]})
    (tmp_path / "x-00000-of-00002").write_bytes(upper)
    (tmp_path / "x-00001-of-00002").write_bytes(lower)
    with pytest.raises(CheckpointError, match="its shards disagree on type or shape"):
        open_checkpoint(tmp_path / "x")


def test_a_data_shard_that_lacks_its_last_byte(tmp_path):
    write_checkpoint(tmp_path / "x", {"v": np.arange(6, dtype=np.float32)})
    data = tmp_path / "x.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        open_checkpoint(tmp_path / "x").tensor("v")
