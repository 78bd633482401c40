"""One round through Flower's gRPC server on loopback: flower.py UPDATE.safetensors CLIENTS ROUNDS

The server is this process; every client is a process of its own whose fit() answers with the same update, made once.
Prints one JSON object: medians over all rounds but the first of wall and server CPU seconds, and the server's peak memory.
"""

import json
import logging
import os
import statistics
import subprocess
import sys
import time

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")

import numpy as np
from flwr.common import Code, FitRes, Parameters, Status, ndarrays_to_parameters

logging.getLogger("flwr").setLevel(logging.ERROR)
PORT = 18477


def tensors(path):
    """The tensors of a safetensors file of F32, in the order of their bytes."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        data = file.read()
    fields = sorted((f for name, f in header.items() if name != "__metadata__"), key=lambda f: f["data_offsets"])
    return [np.frombuffer(data[slice(*f["data_offsets"])], np.float32).reshape(f["shape"]) for f in fields]


def client(path):
    from flwr.client import Client
    from flwr.compat.client.app import start_client

    update = ndarrays_to_parameters(tensors(path))

    class Constant(Client):
        def fit(self, ins):
            answer = Parameters(tensors=list(update.tensors), tensor_type=update.tensor_type)
            return FitRes(status=Status(Code.OK, ""), parameters=answer, num_examples=10, metrics={})

    start_client(server_address=f"127.0.0.1:{PORT}", client=Constant(), insecure=True)


def server(path, count, rounds):
    from flwr.server import Server, ServerConfig, SimpleClientManager, start_server
    from flwr.server.strategy import FedAvg

    taken = []

    class Timed(Server):
        def fit_round(self, server_round, timeout):
            while self.client_manager().num_available() < count:
                time.sleep(0.05)
            wall, cpu = time.perf_counter(), time.process_time()
            result = super().fit_round(server_round, timeout)
            taken.append((time.perf_counter() - wall, time.process_time() - cpu))
            return result

    strategy = FedAvg(
        initial_parameters=ndarrays_to_parameters(tensors(path)),
        fraction_fit=1.0,
        fraction_evaluate=0.0,
        min_fit_clients=count,
        min_available_clients=count,
    )
    me = [sys.executable, os.path.abspath(__file__), "client", path]
    clients = [subprocess.Popen(me, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for _ in range(count)]
    try:
        start_server(
            server_address=f"127.0.0.1:{PORT}",
            server=Timed(client_manager=SimpleClientManager(), strategy=strategy),
            config=ServerConfig(num_rounds=rounds),
        )
    finally:
        for process in clients:
            process.kill()
            process.wait()
    with open("/proc/self/status") as status:
        peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    wall, cpu = (statistics.median(column) for column in zip(*taken[1:]))
    print(json.dumps({"wall_s": wall, "cpu_s": cpu, "peak_bytes": peak << 10}))


if sys.argv[1] == "client":
    client(sys.argv[2])
else:
    server(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
