"""Charset, TFRecords, the FSNS data set, augmentation and synthetic signs."""
