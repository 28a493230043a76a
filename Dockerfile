# Two images from one file: `docker build --target operator .` and `docker build --target runtime .`
#
# Both hold the same wheel and differ in their dependencies: only the runtime has torch. They differ
# from a plain `pip install .[operator]` in the order of the layers: dependencies first, the package
# last, so that a change of the source does not download and store torch again.
#
# What is installed is what requirements-*.lock name, file by file (LOCK=hashes). LOCK=versions takes other
# builds of the same versions: torch for CPUs from a folder, packages that an index of one's own has rebuilt.
# pip takes other indexes and wheel directories by build argument, and a whole pip.conf (credentials
# included) as the build secret `pip`. None of them reaches an image.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

# pip and the build back-end live outside /opt/venv, which becomes the image.
FROM ${PYTHON_IMAGE} AS tools
ARG PIP_INDEX_URL=""
ARG PIP_EXTRA_INDEX_URL=""
ARG PIP_TRUSTED_HOST=""
ARG PIP_FIND_LINKS=""
ARG PIP_CERT=""
# As ENV the stages below inherit them; pip ignores the empty ones.
ENV PIP_INDEX_URL=${PIP_INDEX_URL} PIP_EXTRA_INDEX_URL=${PIP_EXTRA_INDEX_URL} PIP_TRUSTED_HOST=${PIP_TRUSTED_HOST} \
    PIP_FIND_LINKS=${PIP_FIND_LINKS} PIP_CERT=${PIP_CERT} \
    PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
RUN python3 -m venv /opt/pip \
 && python3 -m venv --without-pip /opt/venv \
 && echo "galvatron:x:65532:65532:galvatron:/tmp:/usr/sbin/nologin" >> /etc/passwd \
 && echo "galvatron:x:65532:" >> /etc/group

# In a stage of its own: a change of pyproject.toml that leaves these lists alone (a linter's option)
# keeps the layers that install them.
FROM tools AS requirements
ARG LOCK=hashes
COPY pyproject.toml requirements-*.lock ./
RUN for name in build operator runtime; do \
      sed -e '/--hash=/d' -e 's/ \\$//' requirements-$name.lock > $name.versions; \
    done \
 && python3 -c "import tomllib, pathlib; \
document = tomllib.load(open('pyproject.toml', 'rb')); \
project, write = document['project'], lambda name, lines: pathlib.Path(name + '.txt').write_text( \
    '\n'.join(('--constraint ' + name + '.versions', *lines))); \
write('build', document['dependency-groups']['image-build']); \
[write(extra, project['dependencies'] + project['optional-dependencies'][extra]) for extra in ('operator', 'runtime')]" \
 && case "$LOCK" in \
      versions) ;; \
      hashes) for name in build operator runtime; do \
          { echo --require-hashes; cat requirements-$name.lock; } > $name.txt; \
        done ;; \
      *) echo "LOCK is 'hashes' or 'versions', not '$LOCK'" >&2; exit 1 ;; \
    esac

FROM tools AS operator-dependencies
COPY --from=requirements /build/operator.* ./
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    /opt/pip/bin/pip --python /opt/venv/bin/python install --requirement operator.txt

FROM tools AS runtime-dependencies
COPY --from=requirements /build/runtime.* ./
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    /opt/pip/bin/pip --python /opt/venv/bin/python install --requirement runtime.txt

# pip with the build back-end and what lists the contents of an environment.
FROM tools AS build-tools
COPY --from=requirements /build/build.* ./
RUN --mount=type=secret,id=pip,target=/etc/pip.conf /opt/pip/bin/pip install --requirement build.txt

# The images' bills of materials (CycloneDX): what was really installed, with versions and licences.
FROM operator-dependencies AS operator-materials
COPY --from=build-tools /opt/pip /opt/pip
COPY pyproject.toml ./
RUN /opt/pip/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible \
    --output-file /sbom.cdx.json /opt/venv/bin/python

FROM runtime-dependencies AS runtime-materials
COPY --from=build-tools /opt/pip /opt/pip
COPY pyproject.toml ./
RUN /opt/pip/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible \
    --output-file /sbom.cdx.json /opt/venv/bin/python

# The package alone, laid out as it goes on top of /opt/venv.
FROM build-tools AS package
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
COPY --from=operator-materials /sbom.cdx.json /opt/venv/sbom.cdx.json
COPY --from=package /package /opt/venv
ENTRYPOINT ["python", "-m", "galvatron_operator"]

FROM final AS runtime
LABEL org.opencontainers.image.title="galvatron-runtime" \
      org.opencontainers.image.description="Profiles and trains one Transformer by a plan of galvatron-operator"
COPY --from=runtime-dependencies /opt/venv /opt/venv
COPY --from=runtime-materials /sbom.cdx.json /opt/venv/sbom.cdx.json
COPY --from=package /package /opt/venv
ENTRYPOINT ["python", "-m", "galvatron_runtime.supervisor"]
