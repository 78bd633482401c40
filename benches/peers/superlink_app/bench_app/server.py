"""Federated averaging that notes when rounds begin and end."""

import json
import time

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, MessageType, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from bench_app.tensors import tensors

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context):
    """Runs the rounds."""
    config = context.run_config
    nodes, each = config["nodes"], config["each"]
    out = open(config["out"], "a", encoding="utf-8")

    def note(event, **values):
        out.write(json.dumps({"event": event, "at": time.time(), **values}) + "\n")
        out.flush()

    class Noted(FedAvg):
        """Every node gives `each` updates a round."""

        def configure_train(self, server_round, arrays, config, grid):
            while len(list(grid.get_node_ids())) < nodes:
                time.sleep(0.2)
            note("begin", round=server_round)
            messages = []
            for _ in range(each):
                record = RecordDict({"arrays": arrays, "config": ConfigRecord({**config, "server-round": server_round})})
                messages += list(self._construct_messages(record, list(grid.get_node_ids()), MessageType.TRAIN))
            return messages

        def aggregate_train(self, server_round, replies):
            replies = list(replies)
            result = super().aggregate_train(server_round, replies)
            failed = sum(reply.has_error() for reply in replies)
            note("end", round=server_round, updates=len(replies), failed=failed)
            return result

    initial = ArrayRecord({name: Array(value) for name, value in tensors(config["update"]).items()})
    strategy = Noted(fraction_train=1.0, fraction_evaluate=0.0, min_train_nodes=nodes, min_available_nodes=nodes)
    train_config = ConfigRecord({"update": config["update"]})
    strategy.start(grid=grid, initial_arrays=initial, num_rounds=config["rounds"], train_config=train_config, timeout=900)
    note("done")
