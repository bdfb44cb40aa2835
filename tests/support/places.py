"""The meshes of replicas, on four devices."""

from stair_jax import mesh as mesh_lib

PLACES = mesh_lib.replicas(mesh_lib.make((2, 1, 2)), 0)
