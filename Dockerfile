# One image for GPU and CPU: torch comes with CUDA unless TORCH_INDEX names an index that has CPU-only wheels:
#   docker build --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu -t volo-serve:0.1.0 .
ARG BASE=docker.io/library/python:3.11-slim-bookworm

FROM ${BASE} AS dependencies
RUN apt-get update -q && apt-get install -yq --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/volo
ENV PATH=/opt/volo/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src

# Dependencies have layers of their own, that a change of the code leaves alone, here and in the result; the largest comes
# first. They are what deploy/locks says, to the byte; only torch from an index of your own is what that index gives.
COPY deploy/constraints.txt deploy/locks/torch.txt deploy/
ARG TORCH_INDEX=
RUN if [ -n "${TORCH_INDEX}" ]; \
    then pip install --quiet --constraint deploy/constraints.txt --extra-index-url "${TORCH_INDEX}" torch; \
    else pip install --quiet --require-hashes --requirement deploy/torch.txt; fi
ARG LOCK=service
COPY deploy/locks/${LOCK}.txt deploy/
RUN pip install --quiet --require-hashes --requirement deploy/${LOCK}.txt
COPY deploy/compile_launcher.py deploy/
RUN TRITON_CACHE_DIR=/opt/triton python deploy/compile_launcher.py

FROM dependencies AS code
COPY pyproject.toml README.md LICENSE ./
COPY models models
COPY service service
RUN pip install --quiet --no-deps --no-build-isolation --prefix /code . && \
    PYTHONPATH=$(echo /code/lib/python*/site-packages) pip check

FROM ${BASE}
RUN apt-get update -q && apt-get install -yq --no-install-recommends tini && rm -rf /var/lib/apt/lists/* && \
    useradd --uid 10001 --user-group --no-create-home --home-dir /cache volo && \
    install --directory --owner volo --group volo /cache
COPY --from=dependencies /opt /opt
COPY --from=code /code /opt/volo
COPY deploy/ray/volo_ray.py /opt/volo/ray/
COPY deploy/entrypoint.sh /usr/local/bin/volo-entrypoint
ENV PATH=/opt/volo/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    HF_HOME=/cache/huggingface \
    TRITON_CACHE_DIR=/cache/triton \
    VOLO_HOST=0.0.0.0
USER 10001:10001
WORKDIR /cache
VOLUME /cache
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=300s --retries=3 CMD ["volo-entrypoint", "ready"]
ENTRYPOINT ["tini", "--", "volo-entrypoint"]
CMD ["serve"]

ARG VERSION=0.1.0
ARG REVISION=
LABEL org.opencontainers.image.title="volo-serve" \
      org.opencontainers.image.description="Names what is in a photograph: VOLO behind a dynamic-batching HTTP service" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
