"""Methods compared on the same candidates and labels."""
