"""The pretrained networks: a registry by name, their weights, and where they are cut."""
