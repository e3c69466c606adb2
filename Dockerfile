# gptoss-tune with what it trains with, on CUDA. Build and try:
#   docker build --tag gptoss-tune:0.1.0 .
#   docker run --rm --gpus all --ipc=host --volume "$PWD":/job gptoss-tune:0.1.0 gptoss-tune train my.yaml
FROM python:3.12.11-bookworm AS wheel
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY src src
COPY kernels kernels
COPY recipes recipes
COPY data data
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

# The wheels of torch bring CUDA's libraries; the image brings what the driver is asked through.
FROM nvidia/cuda:12.8.1-base-ubuntu24.04
# A compiler and Python's headers are what Triton builds its launchers with; procps has the pkill
# that job files hand a signal on with.
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
        ca-certificates gcc git libc6-dev procps python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/gptoss-tune
ENV PATH=/opt/gptoss-tune/bin:$PATH
COPY constraints.txt /tmp/constraints.txt
COPY --from=wheel /wheels /wheels
# PIP_ARGUMENTS: further packages, or --constraint /tmp/constraints.txt for the tested versions.
ARG PIP_ARGUMENTS=""
RUN pip install --no-cache-dir ${PIP_ARGUMENTS} "$(echo /wheels/*.whl)[train,ui]"
WORKDIR /job
CMD ["gptoss-tune", "--help"]
