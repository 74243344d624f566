# One image for head, workers and jobs. On GPU nodes PyPI's torch brings CUDA; choose the base that fits the driver.
ARG BASE_IMAGE=python:3.11-slim-bookworm
FROM ${BASE_IMAGE}

# The compiler is for the alignment kernel and for what DeepSpeed builds at first use: both are built below, not on the
# nodes. The kernel chooses its instructions when it runs, so the image fits any x86-64 node, or any ARM one.
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*

ENV PYTHONUNBUFFERED=1 RAY_USAGE_STATS_ENABLED=0 TORCH_EXTENSIONS_DIR=/opt/finepseudo/extensions
WORKDIR /opt/finepseudo
COPY requirements.txt tests/requirements.lock ./
RUN pip install --no-cache-dir setuptools -r requirements.txt -c requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY finepseudo finepseudo
COPY jobs jobs
RUN pip install --no-cache-dir --no-deps --no-build-isolation -e . && python -m finepseudo.train.engine

RUN useradd --create-home --uid 1000 ray
USER 1000
