"""The tests of `make compose-check`: of the compose files, the images, and the running stack."""
