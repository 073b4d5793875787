# Attention-OCR on the CPU. From the repository's root:
#   docker build -f docker/cpu.Dockerfile -t aocr_torch .
#   docker run --rm --shm-size=2g -v "$PWD/runs:/opt/aocr_torch/runs" aocr_torch train.py --config configs/demo.yaml
ARG BASE=python:3.11-slim
FROM ${BASE}
ARG TORCH=2.14.1
ARG TORCHVISION=0.29.1
# PyTorch's own index of CPU builds makes the image some gigabytes smaller on x86.
ARG PIP_EXTRA_INDEX_URL
WORKDIR /opt/aocr_torch
COPY setup.cfg pyproject.toml README.md LICENSE train.py eval.py convert_inception.py ./
COPY aocr_torch aocr_torch
COPY configs configs
COPY tools tools
COPY weights weights
RUN python3 -m pip install --no-cache-dir torch==${TORCH} torchvision==${TORCHVISION} -e .
ENTRYPOINT ["python3"]
CMD ["train.py", "--help"]
