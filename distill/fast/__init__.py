"""The losses of the methods' pages, computed faster; tests hold both equal. May be skipped."""
