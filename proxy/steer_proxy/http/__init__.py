"""The data plane: HTTP in, HTTP out."""
