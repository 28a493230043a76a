"""One file a dimension: how each way of splitting a layer is done on torch."""
