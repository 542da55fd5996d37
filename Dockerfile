# corit on a CPU: no network, no root, nothing written but to /tmp. docs/service.md says how to run it.
#
#   docker build -t corit --build-arg EXTRA_INDEX=ADDRESS .
#
# EXTRA_INDEX may name an index with PyTorch's builds for CPUs (the one that pytorch.org names for them). Left out, pip
# takes the usual build, which brings CUDA along: the image works alike, and is several times as large.
# Compiling goes on past files that are for other versions of Python, which PyTorch has, and fails in the end.
FROM python:3.12-slim AS build
ARG EXTRA_INDEX=""
WORKDIR /source
COPY pyproject.toml README.md LICENSE CHANGELOG.md ./
COPY corit_cli corit_cli
COPY weights weights
COPY docs/model-card.md docs/model-card.md
RUN python -m venv /opt/corit \
    && if [ -n "$EXTRA_INDEX" ]; then /opt/corit/bin/pip install --no-cache-dir --index-url "$EXTRA_INDEX" torch torchvision; fi \
    && /opt/corit/bin/pip install --no-cache-dir ".[serve,c2pa]" \
    && /opt/corit/bin/pip uninstall -y opencv-python \
    && /opt/corit/bin/pip install --no-cache-dir opencv-python-headless \
    && { /opt/corit/bin/python -m compileall -qq /opt/corit/lib || true; }

FROM python:3.12-slim
COPY --from=build /opt/corit /opt/corit
ENV PATH=/opt/corit/bin:$PATH HF_HUB_OFFLINE=1 PYTHONDONTWRITEBYTECODE=1 MPLCONFIGDIR=/tmp/matplotlib
RUN useradd --system --uid 10001 --no-create-home --home-dir /nonexistent corit
USER 10001:10001
WORKDIR /tmp
EXPOSE 8000
HEALTHCHECK --interval=30s --start-period=60s CMD \
    ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=5)"]
ENTRYPOINT ["corit"]
CMD ["serve", "--host", "0.0.0.0"]
