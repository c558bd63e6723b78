"""Tables of data and the sets that make them: one function a set, found by its return annotation `Splits`."""
