"""Review by a person: what to look at next, clicks on disk, agreement, audits of a count."""
