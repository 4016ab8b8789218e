"""The verbs by subject: each parses its arguments, calls the library and prints the result."""
