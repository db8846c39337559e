# The API's image: HTTP, the database and the files; no ML package.
# Packages first, code last: a change of the code rebuilds the last layers alone.
ARG PYTHON_IMAGE=python:3.11-slim

FROM ${PYTHON_IMAGE} AS requirements
WORKDIR /build
COPY docker/requirements.py pyproject.toml ./
RUN python requirements.py postgres s3 < pyproject.toml > requirements.txt

FROM ${PYTHON_IMAGE} AS packages
WORKDIR /build
RUN python -m venv --without-pip /opt/venv
# What it holds depends on the requirements alone, not on the rest of pyproject.toml.
COPY --from=requirements /build/requirements.txt ./
COPY constraints.txt ./
# The secret is optional: a pip.conf that names a mirror. It never becomes part of an image.
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=secret,id=pip_conf,target=/root/.config/pip/pip.conf \
    python -m pip --python /opt/venv/bin/python install --quiet --no-compile -c constraints.txt -r requirements.txt \
    && /opt/venv/bin/python -m compileall -q -x '/(pygments|mssql|mysql|oracle|experimental)/' /opt/venv/lib

FROM ${PYTHON_IMAGE} AS api
LABEL org.opencontainers.image.title="Tunesmith API" \
      org.opencontainers.image.description="Fine-tune language models over REST: the HTTP side"
RUN useradd --uid 1000 --no-create-home --shell /usr/sbin/nologin tunesmith \
    && install -d -o tunesmith -g tunesmith /data /models
COPY --from=packages /opt/venv /opt/venv
WORKDIR /opt/tunesmith
COPY docker/tunesmith /usr/local/bin/
COPY migrations ./migrations
COPY examples ./examples
COPY app ./app
RUN /opt/venv/bin/python -m compileall -q app migrations
# TMPDIR: uploads are larger than a read-only container's /tmp.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONPATH=/opt/tunesmith \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    TMPDIR=/data \
    TUNESMITH_DATA_DIR=/data \
    TUNESMITH_MODELS_DIR=/models
USER 1000:1000
EXPOSE 8000
CMD ["python", "-m", "app"]
