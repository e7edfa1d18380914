"""The `graftline` command: one module per family of commands."""
