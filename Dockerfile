# One image for machines with and without an NVIDIA GPU: PyTorch's default wheels run on both.
# Nothing is written below / at run time except /data (the store), /state (the admin token) and /tmp.

# A stage of its own builds the package: its C functions want a compiler, which the image does without.
FROM python:3.11-slim-bookworm AS build

RUN apt-get update \
 && apt-get install --yes --no-install-recommends gcc libc6-dev \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /build
RUN python3 -m venv /opt/build
COPY pyproject.toml README.md LICENSE taskpack.py ./
COPY masks_store masks_store
COPY trainer trainer
COPY service service
RUN --mount=type=cache,target=/root/.cache/pip \
    /opt/build/bin/pip wheel --no-deps --wheel-dir /wheels . \
 && python3 -m zipfile -l /wheels/taskpack-*.whl | grep service/engine/_native

FROM python:3.11-slim-bookworm

ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_DISABLE_PIP_VERSION_CHECK=1

RUN useradd --uid 10001 --user-group --no-create-home --home-dir /tmp --shell /usr/sbin/nologin taskpack \
 && install -d -o taskpack -g taskpack /data /state

# The dependencies first: this layer, by far the largest, is built again only when they change.
WORKDIR /app
COPY pyproject.toml constraints.txt ./
COPY deploy/requirements.py deploy/requirements.py
RUN --mount=type=cache,target=/root/.cache/pip \
    python3 -m venv /opt/taskpack \
 && python3 deploy/requirements.py pyproject.toml > /tmp/requirements.txt \
 && /opt/taskpack/bin/pip install -r /tmp/requirements.txt -c constraints.txt \
 && rm /tmp/requirements.txt

COPY --from=build /wheels /tmp/wheels
RUN /opt/taskpack/bin/pip install --no-cache-dir --no-deps /tmp/wheels/taskpack-*.whl \
 && rm -r /tmp/wheels
COPY examples examples
COPY deploy deploy

ENV PATH=/opt/taskpack/bin:$PATH \
    HOME=/tmp \
    XDG_STATE_HOME=/state \
    XDG_CACHE_HOME=/tmp/.cache \
    TASKPACK_STORE=/data/store \
    TASKPACK_HOST=0.0.0.0 \
    TASKPACK_PORT=8000

USER 10001:10001
VOLUME ["/data", "/state"]
EXPOSE 8000
STOPSIGNAL SIGTERM
# The first start packs the demo store before it serves, hence the long start period.
HEALTHCHECK --interval=10s --timeout=5s --start-period=1200s --retries=3 CMD ["python", "/app/deploy/healthy.py"]
CMD ["python", "/app/deploy/start.py"]
