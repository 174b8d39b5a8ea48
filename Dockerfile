# For a GPU node: docker build -t aim-fair . && docker run --gpus all -v $PWD/data:/code/data \
#     -v $PWD/results:/code/results aim-fair bash runner.sh
# PyTorch's wheels bring CUDA; the host brings the driver and nvidia-container-toolkit.
FROM python:3.11-slim
RUN apt-get update && apt-get install -y --no-install-recommends g++ git \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /code
COPY requirements.lock .
RUN pip install --no-cache-dir -r requirements.lock
COPY . .
ENV PYTHONUNBUFFERED=1 NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
CMD ["bash", "runner.sh"]
