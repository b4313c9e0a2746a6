"""The reference services' protocol files, and the code that `make generate` makes of them."""
