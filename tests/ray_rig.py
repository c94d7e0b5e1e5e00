from ray_rig import _ray_environment, ray_cluster

__all__ = ["_ray_environment", "ray_cluster"]
