# The service, for one model folder that is mounted:
#
#   docker build --tag canvas-fm .
#   docker run --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges -p 127.0.0.1:3000:3000 \
#     -v /lab/encoder:/model:ro -v /lab/brain.zarr:/data/brain.zarr:ro -v /lab/keys:/run/keys:ro \
#     canvas-fm /model --volume brain=/data/brain.zarr --keys /run/keys
#
# Who runs it reads /run/keys: give the file to user 10001, mode 600. For a GPU: --build-arg CONSTRAINTS= and
# docker run --gpus all.
FROM python:3.11-slim AS build
ARG CONSTRAINTS="--constraint constraints/cpu.txt"
ARG INDEX="--extra-index-url https://download.pytorch.org/whl/cpu"
ARG EXTRAS=""
WORKDIR /source
COPY constraints constraints
COPY pyproject.toml README.md LICENSE ./
COPY recipes recipes
COPY model_cards model_cards
COPY canvas_fm canvas_fm
COPY serving serving
RUN python -m venv /opt/canvas-fm \
 && /opt/canvas-fm/bin/pip install --no-cache-dir --disable-pip-version-check $INDEX $CONSTRAINTS ".$EXTRAS"

FROM python:3.11-slim
# timm and scikit-learn want OpenMP, which the slim image leaves out.
RUN apt-get update && apt-get install --yes --no-install-recommends libgomp1 tini && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin canvas
COPY --from=build /opt/canvas-fm /opt/canvas-fm
ENV PATH=/opt/canvas-fm/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /tmp
EXPOSE 3000
# Ready, not only alive: an orchestrator sends nothing before the model is loaded.
HEALTHCHECK --interval=10s --timeout=5s --start-period=90s --retries=3 \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:3000/readyz', timeout=4)"]
# tini ends what a stopped service might leave; `docker stop --time 150` lets it answer what is in flight.
ENTRYPOINT ["tini", "--", "canvas-fm", "serve", "--host", "0.0.0.0", "--port", "3000", "--log", "json"]
CMD ["/model"]
