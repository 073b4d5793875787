"""Everything around a step: precision, optimizers, checkpoints, measures, logs."""
