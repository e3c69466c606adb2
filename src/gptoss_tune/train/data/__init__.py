"""The rows of a run on their way to the model: order, batches, and what is counted of them."""
