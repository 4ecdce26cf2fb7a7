# For a build that is the same next year, pin the base by digest as well:
#   docker buildx imagetools inspect python:3.12-slim        prints it
#   docker build --build-arg PYTHON=python:3.12-slim@sha256:<digest> -t nfs-provisioner:0.1.0 .
ARG PYTHON=python:3.12-slim

FROM ${PYTHON} AS builder
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
# The environment has no pip of its own; the builder's installs into it from outside.
RUN python -m venv --without-pip /opt/nfs-provisioner
WORKDIR /src
# First what changes rarely. Wheels only: the builder has no compiler either, and needs none.
COPY requirements.lock ./
RUN python -m pip --python /opt/nfs-provisioner/bin/python install --require-hashes --only-binary :all: -r requirements.lock
# The package itself: pip fetches the build backend, in the range that pyproject.toml gives, and drops it afterwards.
COPY pyproject.toml README.md LICENSE ./
COPY nfs_provisioner ./nfs_provisioner
RUN python -m pip --python /opt/nfs-provisioner/bin/python install --no-deps . \
 && /opt/nfs-provisioner/bin/nfs-provisioner version \
 && mkdir -p /rootfs/exports /rootfs/usr/share/licenses/nfs-provisioner \
 && cp LICENSE /rootfs/usr/share/licenses/nfs-provisioner/

FROM ${PYTHON}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="nfs-provisioner" \
      org.opencontainers.image.description="Kubernetes volumes on NFS exports, with a synchronised standby, archives and accounting" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# What installs programs has no business in a running container.
RUN rm -rf /usr/local/lib/python3.*/site-packages/* /usr/local/lib/python3.*/ensurepip /usr/local/bin/pip*
COPY --from=builder /opt/nfs-provisioner /opt/nfs-provisioner
COPY --from=builder /rootfs /
ENV PATH=/opt/nfs-provisioner/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
# Nothing in the image is writable for this user. The Deployment runs as root with six capabilities, because files of
# every owner are made, copied and removed; the other commands (status, volumes, check-config) need no rights at all.
USER 65534:65534
EXPOSE 8080
ENTRYPOINT ["nfs-provisioner"]
CMD ["run"]
