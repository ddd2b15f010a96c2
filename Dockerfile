# docker build -t benchsr .                                        torch for the CPU
# docker build -t benchsr:gpu --build-arg TORCH=cuda .             torch with CUDA, as the package index has it
# docker run --rm --user "$(id -u):$(id -g)" -v "$PWD:/here" -v benchsr:/cache benchsr run --out my-boards
#
# The boards land in the folder mounted at /here and belong to whom --user names. What is fetched and attacked is kept
# in the volume mounted at /cache. With a GPU: --gpus all, and benchsr:gpu in place of benchsr.
FROM python:3.12-slim
ARG TORCH=cpu
RUN if [ "$TORCH" = cpu ]; then \
        pip install --no-cache-dir torch torchvision --index-url https://download.pytorch.org/whl/cpu; \
    fi
COPY . /src
# A volume is owned as its folder in the image is: /cache is anybody's, as nobody knows whom --user will name.
RUN pip install --no-cache-dir /src && rm -r /src && mkdir -m 1777 /here /cache
# torch asks for the user's name, which a number alone does not have.
ENV BENCHSR_CACHE=/cache HOME=/tmp USER=benchsr
USER 1000:1000
VOLUME /cache
WORKDIR /here
ENTRYPOINT ["benchsr"]
CMD ["--help"]
