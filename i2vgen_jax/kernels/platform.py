"""The choice between an implementation for one kind of chip and a plain one."""

from collections.abc import Callable
from typing import Any

import jax


def with_backward(
  kernel: Callable[..., Any], backward: Callable[[Any, Any], Any]
) -> Callable[..., Any]:
  """A kernel with its backward pass.

  Args:
    kernel: function of args.
    backward: gradients of args, from args and the gradients of the results.
  """
  run = jax.custom_vjp(kernel)
  run.defvjp(lambda *args: (kernel(*args), args), backward)
  return run


def forward_only(
  kernel: Callable[..., Any], plain: Callable[..., Any]
) -> Callable[..., Any]:
  """A kernel in whose place `plain` runs under differentiation."""
  run = jax.custom_vjp(kernel)
  run.defvjp(
    lambda *args: jax.vjp(plain, *args),
    lambda pullback, gradients: pullback(gradients),
  )
  return run


def for_platform(
  *args: Any, default: Callable[..., Any], **kernels: Callable[..., Any]
) -> Any:
  """The result of the kernel of the platform that is compiled for.

  Only kernels of that platform are traced: others need time, and libraries that
  are not there.

  Args:
    *args: arrays, or trees of arrays.
    default: function of args for all other platforms.
    **kernels: functions of args for `tpu`, `cuda` or `cpu`.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.abstract_device is not None:
    platform = mesh.abstract_device.platform
  else:
    platform = jax.default_backend()
  platform = {"gpu": "cuda"}.get(platform, platform)
  if platform not in kernels:
    return default(*args)
  # A program for another platform of the same host has the default.
  kernel = {platform: kernels[platform]}
  return jax.lax.platform_dependent(*args, **kernel, default=default)
