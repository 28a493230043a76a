# Two images from one file: `docker build --target operator .` and `docker build --target runtime .`
#
# Both hold the same wheel and differ in their dependencies: only the runtime has torch. They differ
# from a plain `pip install .[operator]` in the order of the layers: dependencies first, the package
# last, so that a change of the source does not download and store torch again.
#
# pip takes other indexes, wheel directories and constraints by build argument, and a whole
# pip.conf (credentials included) as the build secret `pip`. None of them reaches an image.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

# pip and the build back-end live outside /opt/venv, which becomes the image.
FROM ${PYTHON_IMAGE} AS tools
ARG PIP_INDEX_URL=""
ARG PIP_EXTRA_INDEX_URL=""
ARG PIP_TRUSTED_HOST=""
ARG PIP_FIND_LINKS=""
ARG PIP_CONSTRAINT=""
ARG PIP_CERT=""
# As ENV the stages below inherit them; pip ignores the empty ones.
ENV PIP_INDEX_URL=${PIP_INDEX_URL} PIP_EXTRA_INDEX_URL=${PIP_EXTRA_INDEX_URL} PIP_TRUSTED_HOST=${PIP_TRUSTED_HOST} \
    PIP_FIND_LINKS=${PIP_FIND_LINKS} PIP_CONSTRAINT=${PIP_CONSTRAINT} PIP_CERT=${PIP_CERT} \
    PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
RUN python3 -m venv /opt/pip \
 && python3 -m venv --without-pip /opt/venv \
 && echo "galvatron:x:65532:65532:galvatron:/tmp:/usr/sbin/nologin" >> /etc/passwd \
 && echo "galvatron:x:65532:" >> /etc/group

# In a stage of its own: a change of pyproject.toml that leaves these lists alone (a linter's option)
# keeps the layers that install them.
FROM tools AS requirements
COPY pyproject.toml ./
RUN python3 -c "import tomllib, pathlib; \
document = tomllib.load(open('pyproject.toml', 'rb')); \
project, write = document['project'], lambda name, lines: pathlib.Path(name).write_text('\n'.join(lines)); \
write('build.txt', document['build-system']['requires']); \
[write(extra + '.txt', project['dependencies'] + project['optional-dependencies'][extra]) for extra in ('operator', 'runtime')]"

FROM tools AS operator-dependencies
COPY --from=requirements /build/operator.txt ./
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    /opt/pip/bin/pip --python /opt/venv/bin/python install --requirement operator.txt

FROM tools AS runtime-dependencies
COPY --from=requirements /build/runtime.txt ./
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    /opt/pip/bin/pip --python /opt/venv/bin/python install --requirement runtime.txt

# The package alone, laid out as it goes on top of /opt/venv.
FROM tools AS package
COPY --from=requirements /build/build.txt ./
RUN --mount=type=secret,id=pip,target=/etc/pip.conf /opt/pip/bin/pip install --requirement build.txt
COPY . ./
RUN /opt/pip/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /wheels . \
 && /opt/pip/bin/pip --python /opt/venv/bin/python install --no-deps --prefix /package /wheels/*.whl

# Files are compiled at build time; nothing but /tmp needs to be writable at run time.
FROM ${PYTHON_IMAGE} AS final
COPY --from=tools /etc/passwd /etc/group /etc/
ENV PATH=/opt/venv/bin:/usr/local/bin:/usr/bin:/bin HOME=/tmp PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
WORKDIR /tmp
USER 65532:65532
ARG VERSION=""
ARG REVISION=""
LABEL org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

FROM final AS operator
LABEL org.opencontainers.image.title="galvatron-operator" \
      org.opencontainers.image.description="Plans hybrid-parallel training of Transformers and runs it on Kubernetes"
COPY --from=operator-dependencies /opt/venv /opt/venv
COPY --from=package /package /opt/venv
ENTRYPOINT ["python", "-m", "galvatron_operator"]

FROM final AS runtime
LABEL org.opencontainers.image.title="galvatron-runtime" \
      org.opencontainers.image.description="Profiles and trains one Transformer by a plan of galvatron-operator"
COPY --from=runtime-dependencies /opt/venv /opt/venv
COPY --from=package /package /opt/venv
ENTRYPOINT ["python", "-m", "galvatron_runtime.supervisor"]
