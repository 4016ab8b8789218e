"""From cells to biology: regions, groups, co-expression, proximity, segmentation; no torch at import."""
