"""The main job, watched live: `make run`."""
