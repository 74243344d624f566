# One image for head, workers, autoscaler and submitter; jobs included.
#
#   docker build --tag REGISTRY/finepseudo:0.1.0-ray2.60.0-cpu --build-arg EXTRA=cpu .
#   docker build --tag REGISTRY/finepseudo:0.1.0-ray2.60.0-cuda --build-arg EXTRA=cuda .
#
# PyPI's torch brings CUDA with it, so both start from the same base; a node needs the driver alone. A release, which says
# --build-arg RELEASE=0.1.0, names its base by the digest: --build-arg BASE_IMAGE=python:3.11-slim-bookworm@sha256:...
ARG BASE_IMAGE=python:3.11-slim-bookworm
ARG EXTRA=cpu
# Where pip finds torch without CUDA: PyTorch's own index, or a mirror of it.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

# All that needs a compiler is built here: the alignment kernel, which chooses its instructions when it runs, and
# DeepSpeed's collective for CPUs, which would else be compiled at first use, into a folder that pods cannot write.
FROM ${BASE_IMAGE} AS build
ARG BASE_IMAGE
ARG RELEASE=
RUN if [ -n "${RELEASE}" ] && [ "${BASE_IMAGE}" = "${BASE_IMAGE%@sha256:*}" ]; then \
        echo "release ${RELEASE}: expected a BASE_IMAGE with its digest, NAME@sha256:..., got ${BASE_IMAGE}" >&2; exit 1; \
    fi
ARG EXTRA
ARG TORCH_INDEX
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY requirements.txt tests/requirements.lock ./
RUN if [ "${EXTRA}" = cpu ]; then export PIP_EXTRA_INDEX_URL="${TORCH_INDEX}"; fi \
    && pip install --no-cache-dir setuptools -r requirements.txt 'ray[serve]' -c requirements.lock \
    && DS_ACCELERATOR=cpu DS_BUILD_SHM_COMM=1 pip install --no-cache-dir --force-reinstall --no-deps \
       --no-build-isolation --no-binary deepspeed "$(grep '^deepspeed==' requirements.txt)"
COPY pyproject.toml README.md LICENSE ./
COPY finepseudo finepseudo
RUN pip install --no-cache-dir --no-deps --no-build-isolation .

# OpenMP is what the compiled parts link to.
FROM ${BASE_IMAGE} AS runtime-cpu
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/*

# Triton compiles its launchers on the GPU that it finds, with a C compiler.
FROM runtime-cpu AS runtime-cuda
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility

# Everything lies in /usr/local, so `python` and `ray` are found by login shells too.
# hadolint ignore=DL3006
FROM runtime-${EXTRA}
ARG BASE_IMAGE
ARG RELEASE=
LABEL org.opencontainers.image.title="finepseudo" \
      org.opencontainers.image.version="${RELEASE}" \
      org.opencontainers.image.base.name="${BASE_IMAGE}"
COPY --from=build /usr/local /usr/local
WORKDIR /opt/finepseudo
COPY jobs jobs
# The one folder that is written to is /tmp, so the root may be read-only.
ENV HOME=/tmp PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 RAY_USAGE_STATS_ENABLED=0
# Ends the build where the compiled parts are not there already.
RUN python -c 'from finepseudo.align.kernels import cpu; raise SystemExit(cpu.missing() or None)' \
    && python -m finepseudo.train.engine && ray --version \
    && rm -rf /tmp/* /tmp/.[!.]*
USER 1000:0
