"""What the comparison needs TensorFlow for; runs in TensorFlow's own environment (see README.md here).

python in_tensorflow.py inception FOLDER     # slim's Inception-v3 saved in three ways, and features of an image
python in_tensorflow.py types FOLDER         # a variable of each type, plain and in slices, V1 and V2
python in_tensorflow.py others FOLDER        # an object-based checkpoint and a SavedModel
python in_tensorflow.py dump CHECKPOINT OUT.npz         # every tensor, by tf.train.load_checkpoint
python in_tensorflow.py restore CHECKPOINT OUT.npz      # the same by Saver.restore into variables
python in_tensorflow.py features CHECKPOINT OUT.npz     # Saver.restore into slim's tower, then the features
"""

import importlib
import itertools
import os
import sys
import zlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf2
import tensorflow.compat.v1 as tf

ENDPOINTS = ("Mixed_5d", "Mixed_7c")
DEVICES = 3


def import_inception():
    """slim's inception_v3 module; tf_slim 1.1 looks for parts of TensorFlow under older names."""
    import tf_keras.src.legacy_tf_layers as layers
    from tensorflow.python.framework import indexed_slices, ops

    sys.modules["tf_keras.legacy_tf_layers"] = layers
    for name in ("normalization", "base", "core", "convolutional", "pooling"):
        module = importlib.import_module(f"tf_keras.src.legacy_tf_layers.{name}")
        sys.modules[f"tf_keras.legacy_tf_layers.{name}"] = module
    for name in ("IndexedSlices", "IndexedSlicesValue"):
        if not hasattr(ops, name):
            setattr(ops, name, getattr(indexed_slices, name))
    import tf_slim
    from tf_slim.nets import inception_v3

    return tf_slim, inception_v3


def value_of(name, shape):
    """A value for the variable that depends on its name and shape alone; sizes keep activations of order one."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if name == "global_step":
        return 123
    if name.endswith("weights"):
        return (rng.standard_normal(shape) * np.sqrt(2 / max(np.prod(shape[:-1]), 1))).astype(np.float32)
    if name.endswith("variance"):
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    return rng.normal(0, 0.1, shape).astype(np.float32)


def image():
    return np.random.default_rng(1).uniform(-1, 1, (2, 299, 299, 3)).astype(np.float32)


def session():
    return tf.Session(config=tf.ConfigProto(device_count={"CPU": DEVICES}))


def assign(sess, value):
    """Gives each variable, and each part of a partitioned one, the value (name, shape) says."""
    for variable in tf.global_variables():
        info = variable._get_save_slice_info()
        if info is None:
            variable.load(value(variable.op.name, variable.shape.as_list()), sess)
        else:
            place = tuple(slice(start, start + size) for start, size in zip(info.var_offset, info.var_shape))
            variable.load(value(info.full_name, info.full_shape)[place], sess)


def network(images, num_classes):
    """slim's Inception-v3 in evaluation mode -> its endpoints; num_classes None: the tower alone."""
    slim, inception_v3 = import_inception()
    with slim.arg_scope(inception_v3.inception_v3_arg_scope()), slim.arg_scope([slim.batch_norm], is_training=False):
        if num_classes is None:
            return inception_v3.inception_v3_base(images, scope="InceptionV3")[1]
        return inception_v3.inception_v3(images, num_classes=num_classes, is_training=False)[1]


def spread():
    """A device function that deals out the variables to the devices, which become the shards."""
    count = itertools.count()
    return lambda op: f"/cpu:{next(count) % DEVICES}" if op.type in ("VariableV2", "VarHandleOp") else "/cpu:0"


def in_parts(shape, dtype):
    """A partitioner that cuts kernels along their output channels."""
    return [1, 1, 1, DEVICES] if shape.rank == 4 else [1] * shape.rank


def inception(folder):
    """v1.ckpt, v2, and v2_sharded with partitioned variables over three shards; features.npz."""
    endpoints = network(tf.constant(image()), 1001)
    tf.train.get_or_create_global_step()
    with session() as sess:
        assign(sess, value_of)
        tf.train.Saver(write_version=1).save(sess, f"{folder}/v1.ckpt", write_meta_graph=False, write_state=False)
        tf.train.Saver().save(sess, f"{folder}/v2", write_meta_graph=False, write_state=False)
        np.savez(f"{folder}/features.npz", **sess.run({name: endpoints[name] for name in ENDPOINTS}))
        print("parameters:", sum(int(np.prod(v.shape.as_list())) for v in tf.global_variables()))
    tf.reset_default_graph()
    with tf.device(spread()), tf.variable_scope("", partitioner=in_parts):
        network(tf.constant(image()), 1001)
        tf.train.get_or_create_global_step()
    with session() as sess:
        assign(sess, value_of)
        tf.train.Saver(sharded=True).save(sess, f"{folder}/v2_sharded", write_meta_graph=False)
        tf.train.Saver(sharded=True, write_version=1).save(
            sess, f"{folder}/v1_sharded", write_meta_graph=False, write_state=False
        )


def types(folder):
    """Variables of all types the reader decodes, of lengths that need slice numbers of one to three bytes."""
    rng = np.random.default_rng(2)
    values = {
        "half": rng.standard_normal((5, 7)).astype(np.float16),
        "float": rng.standard_normal((3, 3, 2, 2)).astype(np.float32),
        "double": rng.standard_normal(9),
        "int32": rng.integers(-(2**31), 2**31, 11).astype(np.int32),
        "int64": rng.integers(-(2**62), 2**62, 11),
        "bool": rng.random((4, 3)) < 0.5,
        "scalar": np.array(3.5, np.float32),
        "long": rng.standard_normal((40000, 2)).astype(np.float32),
    }
    np.savez(f"{folder}/types.npz", **values)
    for name, version in (("types_v1", 1), ("types_v2", 2)):
        tf.reset_default_graph()
        for key, value in values.items():
            partitioner = tf.fixed_size_partitioner(3) if key in ("long", "double") else None
            with tf.variable_scope("", partitioner=partitioner):
                tf.get_variable(key, value.shape, tf.as_dtype(value.dtype), tf.zeros_initializer())
        with session() as sess:
            assign(sess, lambda name, _: values[name])
            if version == 2:
                narrow = tf.get_variable("bfloat16", initializer=tf.constant(values["float"], tf.bfloat16))
                sess.run(narrow.initializer)
            saver = tf.train.Saver(write_version=version)
            saver.save(sess, f"{folder}/{name}", write_meta_graph=False, write_state=False)
            if version == 2:
                np.savez(f"{folder}/bfloat16.npz", bfloat16=sess.run(tf.cast(narrow, tf.float32)))


def others(folder):
    module = tf2.Module()
    module.weight = tf2.Variable([1.0, 2.0])
    tf2.train.Checkpoint(model=module).write(f"{folder}/object_based")
    tf2.saved_model.save(module, f"{folder}/saved_model")


def dump(checkpoint, out):
    reader = tf.train.load_checkpoint(checkpoint)
    np.savez(out, **{name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()})


def restore(checkpoint, out):
    reader = tf.train.load_checkpoint(checkpoint)
    types = reader.get_variable_to_dtype_map()
    shapes = reader.get_variable_to_shape_map()
    variables = {name: tf.get_variable(f"v/{name}", shape, types[name]) for name, shape in shapes.items()}
    with session() as sess:
        tf.train.Saver(variables).restore(sess, checkpoint)
        np.savez(out, **sess.run(variables))


def features(checkpoint, out):
    endpoints = network(tf.constant(image()), None)
    with session() as sess:
        tf.train.Saver().restore(sess, checkpoint)
        np.savez(out, **sess.run({name: endpoints[name] for name in ENDPOINTS}))


if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    if command != "others":
        tf.disable_v2_behavior()
    tf.logging.set_verbosity(tf.logging.ERROR)
    globals()[command](*arguments)
