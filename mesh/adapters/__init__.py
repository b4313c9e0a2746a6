"""Stubs and servicers of other libraries on the mesh, one file a library."""
