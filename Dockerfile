# One image for both services: `tandem api` (the default) and `tandem worker`.
FROM python:3.12-slim AS build
WORKDIR /build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore \
    UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1 UV_NO_CACHE=1 UV_PYTHON_DOWNLOADS=never
COPY requirements.lock pyproject.toml ./
# The two build tools, at the versions and hashes of the lock.
RUN sed -n '/^\(setuptools\|uv\)==/,/[^\\]$/p' requirements.lock > tools.lock \
    && pip install --require-hashes -r tools.lock
# The server's dependencies. The lock constrains each to one version and its hashes (uv checks the
# hashes of constraints; pip does so from 26 on).
RUN python -m venv --without-pip /opt/tandem \
    && uv pip install --python /opt/tandem/bin/python -c requirements.lock \
        -r pyproject.toml --extra server
COPY README.md LICENSE ./
COPY shared shared
COPY api api
COPY worker worker
RUN uv build --wheel --no-build-isolation --out-dir dist \
    && uv pip install --python /opt/tandem/bin/python --no-deps --no-index dist/*.whl

FROM python:3.12-slim
ENV PATH=/opt/tandem/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    TANDEM_STORE_URL=file:///data TANDEM_LOG=json
# A numeric user, so that orchestrators can verify that it is not root. Mount /data for the files.
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin tandem \
    && install -d -o 10001 -g 10001 /data
COPY --from=build /opt/tandem /opt/tandem
WORKDIR /data
USER 10001:10001
STOPSIGNAL SIGTERM
ENTRYPOINT ["tandem"]
CMD ["api"]
