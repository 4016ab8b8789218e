"""A study: raw planes of several brains to cells, vectors, counts and one page, step by step, resumable."""
