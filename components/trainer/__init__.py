"""The trainer: backbones, inputs, features computed once, phases, export."""
