# Attention-OCR on Ascend NPUs. BASE is an image with CANN (toolkit and kernels of the chip) and Python:
#   docker build -f docker/ascend.Dockerfile --build-arg BASE=... -t aocr_torch_npu .
# To run it, on the first device, with the data set in DATA:
#   docker run --rm --shm-size=16g --device /dev/davinci0 --device /dev/davinci_manager --device /dev/devmm_svm \
#       --device /dev/hisi_hdc -v /usr/local/Ascend/driver:/usr/local/Ascend/driver:ro -v DATA:/data \
#       -v "$PWD/runs:/opt/aocr_torch/runs" aocr_torch_npu python3 train.py --device npu:0 --amp --dataset_dir /data
ARG BASE
FROM ${BASE}
# One row of the table in docs/ascend.md; it must fit BASE's CANN and Python.
ARG TORCH=2.1.0
ARG TORCHVISION=0.16.0
ARG TORCH_NPU=2.1.0.post17
ARG NUMPY="numpy<2"
ARG PIP_EXTRA_INDEX_URL
WORKDIR /opt/aocr_torch
COPY setup.cfg pyproject.toml README.md LICENSE train.py eval.py convert_inception.py ./
COPY aocr_torch aocr_torch
COPY configs configs
COPY tools tools
COPY weights weights
# The last five are imported by CANN's Python parts, which declare nothing.
RUN python3 -m pip install --no-cache-dir torch==${TORCH} torchvision==${TORCHVISION} "${NUMPY}" -e . \
    attrs cloudpickle decorator psutil scipy
# Without its dependencies: on x86 it asks for a build of torch that PyPI does not have.
RUN python3 -m pip install --no-cache-dir --no-deps torch_npu==${TORCH_NPU}
ENTRYPOINT ["bash", "-c", "source tools/ascend/env_npu.sh && exec \"$@\"", "bash"]
CMD ["python3", "train.py", "--help"]
