# The worker's image: training and generation. TORCH_VARIANT says for which device, cuda or cpu.
# Packages first, code last: a change of the code rebuilds the last layers alone.
ARG PYTHON_IMAGE=python:3.11-slim

FROM ${PYTHON_IMAGE} AS requirements
ARG TORCH_VARIANT=cuda
# A further extra of pyproject.toml: ray, for jobs over several hosts.
ARG EXTRAS=""
WORKDIR /build
COPY docker/requirements.py pyproject.toml ./
RUN if [ "$TORCH_VARIANT" = cuda ]; then set -- gpu; fi; \
    python requirements.py worker llama-cpp postgres s3 "$@" ${EXTRAS:+"$EXTRAS"} < pyproject.toml > requirements.txt

FROM ${PYTHON_IMAGE} AS packages
# An index whose torch is preferred to PyPI's, which is the CUDA build: PyTorch's own for CPUs, say.
ARG TORCH_INDEX_URL=""
WORKDIR /build
RUN python -m venv --without-pip /opt/venv
COPY constraints.txt ./
# The secret is optional: a pip.conf that names a mirror. It never becomes part of an image.
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=secret,id=pip_conf,target=/root/.config/pip/pip.conf \
    python -m pip --python /opt/venv/bin/python install --quiet --no-deps -c constraints.txt \
        ${TORCH_INDEX_URL:+--extra-index-url "$TORCH_INDEX_URL"} torch
# What it holds depends on the requirements alone, not on the rest of pyproject.toml.
COPY --from=requirements /build/requirements.txt ./
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=secret,id=pip_conf,target=/root/.config/pip/pip.conf \
    python -m pip --python /opt/venv/bin/python install --quiet -c constraints.txt -r requirements.txt

FROM ${PYTHON_IMAGE} AS worker
ARG TORCH_VARIANT=cuda
LABEL org.opencontainers.image.title="Tunesmith worker" \
      org.opencontainers.image.description="Fine-tune language models over REST: training and generation"
# Triton compiles a launcher for each GPU kernel when it is first used.
# hadolint ignore=DL3008
RUN if [ "$TORCH_VARIANT" = cuda ]; then \
        apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev \
        && rm -rf /var/lib/apt/lists/*; \
    fi
RUN useradd --uid 1000 --create-home --shell /usr/sbin/nologin tunesmith \
    && install -d -o tunesmith -g tunesmith /data /models
COPY --from=packages /opt/venv /opt/venv
WORKDIR /opt/tunesmith
COPY docker/tunesmith /usr/local/bin/
COPY migrations ./migrations
COPY app ./app
COPY worker ./worker
RUN /opt/venv/bin/python -m compileall -q app worker migrations
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONPATH=/opt/tunesmith \
    PYTHONUNBUFFERED=1 \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    HF_HOME=/models/.hub \
    TRITON_CACHE_DIR=/data/cache/triton \
    TORCHINDUCTOR_CACHE_DIR=/data/cache/inductor \
    TUNESMITH_DATA_DIR=/data \
    TUNESMITH_MODELS_DIR=/models
USER 1000:1000
CMD ["python", "-m", "worker"]
