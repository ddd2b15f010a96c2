# docker build -t benchsr .                                        torch for the CPU
# docker build -t benchsr:gpu --build-arg TORCH=cuda .             torch with CUDA, as the package index has it
# docker run --rm -v "$PWD/boards:/boards" benchsr run --models all --threats all --out /boards
# docker run --rm --gpus all -v "$PWD/boards:/boards" benchsr:gpu run --models all --threats all --out /boards
FROM python:3.12-slim
ARG TORCH=cpu
RUN if [ "$TORCH" = cpu ]; then \
        pip install --no-cache-dir torch torchvision --index-url https://download.pytorch.org/whl/cpu; \
    fi
COPY . /src
RUN pip install --no-cache-dir /src && rm -r /src && useradd --create-home benchsr
USER benchsr
WORKDIR /home/benchsr
# Fetched weights and attacked images outlive the container where a volume is mounted here.
ENV BENCHSR_CACHE=/home/benchsr/cache
VOLUME /home/benchsr/cache
ENTRYPOINT ["benchsr"]
CMD ["--help"]
