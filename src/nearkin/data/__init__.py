"""Tables of data and the sets that make them: a set is a function annotated to return `Splits`."""
