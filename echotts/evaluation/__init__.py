"""The meter: what a recogniser hears and whose voice it is, for any system that speaks digit strings."""
