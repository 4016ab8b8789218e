"""The page on which a person reviews candidates: routes, crops, start."""
