"""A client that answers with the update."""

from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from bench_app.tensors import tensors

app = ClientApp()


@app.train()
def train(message: Message, context: Context):
    """Sends the update that the server names."""
    update = tensors(message.content["config"]["update"])
    arrays = ArrayRecord({name: Array(value) for name, value in update.items()})
    content = RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 10})})
    return Message(content=content, reply_to=message)
