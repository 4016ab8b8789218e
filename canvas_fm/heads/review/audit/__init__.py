"""Audit of a count: a stratified sample, its answers, estimates with intervals."""
