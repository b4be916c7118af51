# The service on a CPU. Built and used by hand, see docs/service.md; continuous integration does not.
FROM python:3.12-slim

RUN useradd --create-home regionhash
WORKDIR /app
COPY pyproject.toml README.md LICENSE ./
COPY src ./src
RUN pip install --no-cache-dir .

USER regionhash
ENV OMP_WAIT_POLICY=PASSIVE PYTHONUNBUFFERED=1
VOLUME ["/collection"]
EXPOSE 8000
HEALTHCHECK CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health')"]
# REGIONHASH_TOKEN must be given: the container listens to others than itself.
ENTRYPOINT ["regionhash"]
CMD ["serve", "/collection", "--host", "0.0.0.0"]
