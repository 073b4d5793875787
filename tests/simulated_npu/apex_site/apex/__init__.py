"""A stand-in for the Ascend build of apex: amp at O2 with combine_grad, as aocr_torch uses it. See ../../README.md."""
