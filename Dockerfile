# The service on a CPU. Built and used by hand, see docs/service.md; continuous integration does not.
FROM python:3.12 AS build

WORKDIR /source
COPY pyproject.toml setup.py README.md LICENSE ./
COPY src ./src
# The slim image below has no compiler.
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.12-slim

RUN useradd --create-home regionhash
WORKDIR /app
COPY --from=build /wheels /wheels
# Such as "[milvus]".
ARG EXTRAS=""
RUN pip install --no-cache-dir "$(echo /wheels/*.whl)${EXTRAS}"

USER regionhash
ENV OMP_WAIT_POLICY=PASSIVE PYTHONUNBUFFERED=1
VOLUME ["/collection"]
EXPOSE 8000
HEALTHCHECK CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health')"]
# REGIONHASH_TOKEN must be given: the container listens to others than itself.
ENTRYPOINT ["regionhash"]
CMD ["serve", "/collection", "--host", "0.0.0.0"]
