"""Reference services for `mesh serve`: plain grpcio servicers, one module a service."""
