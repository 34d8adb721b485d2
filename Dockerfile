# docker build -t fastlsr .                                                             # torch with CUDA
# docker build -t fastlsr --build-arg CPU=1 --build-arg PIP_EXTRA_INDEX_URL=... .       # without; docs/installing.md
# docker run --rm -it --gpus all --shm-size 8g -v "$PWD:/work" fastlsr fastlsr train --cfg tsla_cifar100
FROM debian:trixie-slim

# What else is needed of Debian, setup.sh installs.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates git make python3 \
    && rm -rf /var/lib/apt/lists/* \
    && git config --system --add safe.directory /opt/fastlsr \
    && useradd --create-home --uid 1000 fastlsr

WORKDIR /opt/fastlsr
COPY . .
ARG CPU=0
ARG PIP_EXTRA_INDEX_URL
RUN make setup CPU="$CPU" && rm -rf /root/.cache /var/lib/apt/lists/*
ENV PATH=/opt/fastlsr/.venv/bin:$PATH NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility

USER 1000
WORKDIR /work
CMD ["fastlsr"]
