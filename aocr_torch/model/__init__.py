"""The network: Inception-v3 tower, decoders, loss. Imports nothing of data/ or training/."""
