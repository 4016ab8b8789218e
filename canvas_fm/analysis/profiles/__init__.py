"""Mean embedding, cluster shares and novelty of each region's cells, compared between groups."""
