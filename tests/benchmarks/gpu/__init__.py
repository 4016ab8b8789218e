"""A GPU that is there for a quarter of an hour: figures, then a pretraining for the time that is left.

Imports torch, numpy, einops and safetensors alone: such a machine may have nothing else.
"""
