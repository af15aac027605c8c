# keepfit_clip in a container, for the CPU or for CUDA.
#
#   docker build -t keepfit-clip .                                            # torch as pip gives it: CUDA's libraries too
#   docker build -t keepfit-clip --build-arg TORCH_INDEX=ADDRESS .            # of PyTorch's index for the CPU, or another CUDA
#   docker run --rm -v "$PWD:/data" keepfit-clip quickstart /data/PHOTOS --out /data/first-look
#   docker run --rm -p 7860:7860 -v "$PWD:/data" keepfit-clip app --model /data/model --host 0.0.0.0 --port 7860
FROM python:3.12-slim-bookworm

ARG TORCH_INDEX=""
ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1 HF_HOME=/data/.cache/huggingface

# hadolint ignore=DL3013
RUN pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "torch>=2.8" torchvision

WORKDIR /src
COPY setup.cfg setup.py README.md LICENSE ./
COPY src src
COPY training training
COPY model_configs model_configs
# what versions it takes stands in setup.cfg
# hadolint ignore=DL3013
RUN pip install ".[lite,plots,explain,captions,app]" && useradd --uid 1000 --create-home keepfit

USER 1000
WORKDIR /data
ENTRYPOINT ["keepfit-clip"]
CMD ["--help"]
