"""Weight files, a module a format, and the loader that makes models of them."""
