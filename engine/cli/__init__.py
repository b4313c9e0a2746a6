"""Commands of the engine, found by `mesh` through entry points of the group `mesh.commands`; one file a command."""
